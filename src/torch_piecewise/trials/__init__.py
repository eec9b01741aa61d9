"""Trials of a compiled program on real inputs: is each piece right, and is it faster than eager."""

from torch_piecewise.trials.profile import PieceTime, Profile, profile
from torch_piecewise.trials.verify import PieceCheck, Verification, verify

__all__ = ["PieceCheck", "PieceTime", "Profile", "Verification", "profile", "verify"]
