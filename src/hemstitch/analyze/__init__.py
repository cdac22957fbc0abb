"""What models do along the noise levels: which experts run, where members agree, which frequencies are settled when.

experts, agreement and frequency measure; trajectory walks; study does it all for some members; figures, findings and
report show it.
"""
