"""The page: ``streamlit run app/main.py``, from any directory, installed or not. Routes between views, nothing else."""

import pathlib
import sys

# `streamlit run` puts app/ on the path, not the repository: without an install, `monitor` would not be found.
ROOT = pathlib.Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

import streamlit as st  # noqa: E402

ICON = pathlib.Path(__file__).parent / "icon.svg"


def ui() -> None:
    """One run of the script, for one browser tab."""
    st.set_page_config(page_title="Gradiometer", page_icon=str(ICON), layout="wide", initial_sidebar_state="collapsed")
    pages = [
        st.Page("views/runs.py", title="Runs", default=True),
        st.Page("views/compare.py", title="Compare", url_path="compare"),
        st.Page("views/launch.py", title="Launch", url_path="launch"),
        st.Page("views/sweep.py", title="Sweeps", url_path="sweeps"),
        st.Page("views/run.py", title="Run", url_path="run", visibility="hidden"),
    ]
    st.logo(str(ICON.with_name("wordmark.svg")), size="medium")
    st.navigation(pages, position="top").run()


if __name__ == "__main__":  # each run of the script
    ui()
else:  # imported once by the server, which finds `app` by reading the syntax tree
    import threading

    from app.serve import lifespan, make_ready
    from app.web import middleware, on_script_error, routes

    threading.Thread(target=make_ready, name="imports", daemon=True).start()
    app = st.App(__file__, routes=routes, middleware=middleware, on_script_error=on_script_error, lifespan=lifespan)
