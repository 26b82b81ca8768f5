"""Autograd has a thread for each device, from the first backward on: the other one comes before."""

from tests.other_device import register

register()
