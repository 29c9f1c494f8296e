"""Facts about markets: bars, where they come from, how good they are, and what can be computed from them.

The lowest layer of the house: it imports nothing from the other packages. The names most callers need are
`data.bars.Bars`, `data.timeframe.Timeframe`, `data.store.BarStore`, `data.samples.load_sample` and
`data.features.FeatureSet`.
"""
