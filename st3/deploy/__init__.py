"""From a finished run: load its network, evaluate it, classify pictures with it. Nothing is trained here."""

from st3.deploy.card import Card
from st3.deploy.network import load

__all__ = ["Card", "load"]
