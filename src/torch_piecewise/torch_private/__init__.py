"""The only place that touches private torch names, one file per corner of torch.

Each function says what it uses and the versions it was checked against: 2.11 by its source, 2.13 by
running. Files import only what they are about, so that a start from the store or from a bundle does not
pay for Dynamo or Inductor.
"""
