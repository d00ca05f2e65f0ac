"""The libraries, and the modules of this project."""
# ruff: noqa: F401

import lime.experiments.resume
import lime.jobs.asking
import lime.jobs.evaluate
import lime.jobs.setup
import lime.jobs.train
import lime.report.render
import lime.training.fit
import lime.training.preflight.plan
import lime.tuner.layers.linear
import tests.preloaded.libraries
