"""Other libraries: secateur speaks their formats and fits their loops."""
