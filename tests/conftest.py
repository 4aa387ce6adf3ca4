"""What holds for every test, whatever ran before it."""

import torch

# torch remembers its constructors at the first use of ``torch.device`` as a context. transformers
# builds models with ``torch.linspace`` replaced: were that the first use, the true ``linspace``
# would never again make meta tensors in this process.
with torch.device("meta"):
    torch.empty(0)
