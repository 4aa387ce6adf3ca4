"""Every method of sparse training on real pictures: accuracy against sparsity."""
