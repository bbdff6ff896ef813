"""What a network costs: MACs and exact zeros per layer."""

from st3.measure.layers import LayerRow, Totals, format_table, layer_table, totals
from st3.measure.macs import layer_macs
from st3.measure.meter import SparsityMeter

__all__ = ["LayerRow", "SparsityMeter", "Totals", "format_table", "layer_macs", "layer_table", "totals"]
