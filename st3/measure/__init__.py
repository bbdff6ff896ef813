"""What a network costs: MACs, measured times and exact zeros per layer."""

from st3.measure.layers import LayerRow, Totals, format_table, layer_table, totals
from st3.measure.macs import layer_macs
from st3.measure.meter import SparsityMeter
from st3.measure.times import Times

__all__ = ["LayerRow", "SparsityMeter", "Times", "Totals", "format_table", "layer_macs", "layer_table", "totals"]
