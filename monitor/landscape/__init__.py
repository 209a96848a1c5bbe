"""The loss around the present weights: directions, samples, and the undisturbed model behind them."""
