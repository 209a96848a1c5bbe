"""Small trainings as a user would write them, ``monitor.attach`` round a loop of one's own: healthy and broken ones.

    python -m tests.faults.own_loops [--only a,b] [--seed N] [--runs FOLDER] [--budget SHARE]

A minute and a half on one core. A finding of warning or worse on a healthy one is a false alarm; a broken one is told
when one of the rules that would be right says so and dates it to where it broke. With ``--runs`` the runs are kept, and
a second call asks the doctor alone.

What was said of loops of this kind at first sight, each with one seed and with the monitor as it comes: 28 findings of
warning or worse on a first 14 healthy ones. What follows from physics was mended: a first loss that is no cross-entropy
of the output, a GAN's loss that another one raises, policies and value functions whose returns rise, gradients that
jump again and again without the loss, a loss that has converged, steps that are slower because more layers are trained.
After that, on 13 others: 2, a linear student whose weights grow at first, which is mended too, and the experts of a
mixture that are never asked, which is true and stands among the broken ones here. On 13 more: none. Of 12 broken ones
all were told, a leak of memory by its slower steps alone.

The ones kept here are those that differ most, written anew, and are no test any more: only new kinds are. What was
chosen after a look at their findings: the rule about growing weights was mended once more, since it still told of the
linear student with seeds 0 and 1; ``BUDGET`` is not the default, with which a late second moment was told of flow with
seed 0; there are eight experts, since all of four were asked with seed 3; any step is right for by-heart, since a
window about those of seeds 0 to 3 missed that of seed 4. With that, seeds 0 to 4 give 0, 3, 8, 1 and 3 false alarms in
21,820 healthy steps each, 0.14 per 1,000, on a busy machine, and all 11 broken ones are told each time. Of these 15,
seven are batches of heavy-tails whose loss is many times as large; three of dqn (dead units, a late second moment,
returns that do fall), one each of ctc and flow (a late second moment), two of batch-of-one (dead units); one is a
fine-tuning whose steps got slower.

Written after these were mended, ``healthy_third.py`` and ``broken_third.py`` say of themselves what was said of them at
first sight. With what was mended for these, seeds 0 to 4 of the loops above give 0, 4, 6, 0 and 2 false alarms, and all
11 broken ones are told.
"""
