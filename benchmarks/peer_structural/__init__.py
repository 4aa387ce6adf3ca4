"""Side by side with Torch-Pruning, the other library that removes coupled channels.

So far: how each library is called (``libraries``), how a removal is judged (``judge``), and the
resumable run over the coverage sets (``coverage``). Times, accuracies and the page are to come.
"""
