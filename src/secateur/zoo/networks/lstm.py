"""A text classifier: embedding, two bidirectional LSTM layers, mean over the words."""

from torch import Tensor, nn

from secateur.zoo.recipe import Recipe

RECIPE = Recipe(
    data="austen", epochs=8, lr=3e-3, batch_size=64, optimizer="adamw", weight_decay=0.05
)


class TextLSTM(nn.Module):
    """Tells which of `num_classes` sources a passage is from; token 0 is padding."""

    def __init__(
        self, vocabulary: int = 4000, embedding_dim: int = 64, hidden_size: int = 64
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, embedding_dim, padding_idx=0)
        self.dropout = nn.Dropout(0.5)
        self.lstm = nn.LSTM(
            embedding_dim,
            hidden_size,
            num_layers=2,
            batch_first=True,
            bidirectional=True,
            dropout=0.3,
        )
        self.fc = nn.Linear(2 * hidden_size, 6)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map token ids `(batch, words)` to logits `(batch, num_classes)`."""
        mask = (tokens != 0).unsqueeze(-1)
        hidden, _ = self.lstm(self.dropout(self.embedding(tokens)))
        mean = (hidden * mask).sum(1) / mask.sum(1).clamp(min=1)
        return self.fc(self.dropout(mean))


def build() -> nn.Module:
    """Make the untrained network."""
    return TextLSTM()
