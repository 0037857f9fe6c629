"""EMP-SSL: learn from many patches of each image, so that few passes over the images suffice."""

from typing import Any, ClassVar

from pydantic import Field
from torch import Tensor, nn

from sslkit.config.task import Fitted, Task
from sslkit.methods import Batch, Method, RunInfo
from sslkit.nn.heads import mlp
from sslkit_fewsteps.losses import empssl_sum, empssl_terms, largest_coding_rate


class EMPSSL(Method):
    """Draw many patches of an image to their mean while different images spread out (Tong et al. 2023).

    EMP-SSL: Towards Self-Supervised Learning in One Training Epoch, arXiv:2304.03977: total coding rate of each
    patch's embeddings and cosine similarity to the mean embedding. `augment.views` is the number of
    patches; all pass through the network as one batch, with the official code's three-layer projector. The paper
    averages embeddings of many patches to classify an image; here the backbone sees the whole image.
    """

    class Config(Method.Config):
        invariance_weight: float = Field(default=200.0, ge=0)
        """λ: weight of the similarity; 200 suits batches of 100: the coding rate grows with the number of images."""
        eps: float = Field(default=0.2, gt=0)
        """ε² of the coding rate, called eps in the official code: the distortion up to which embeddings are coded."""
        hidden: int = Field(default=4096, ge=1)
        """Width of the projector's two hidden layers; 1024 suits small GPUs."""
        dim: int = Field(default=1024, ge=1)
        """d: width of the embedding."""

    augment: ClassVar[str] = "empssl"
    defaults: ClassVar[dict[str, Any]] = {
        "batch_size": 100,
        "epochs": 30,
        "optimizer.name": "adamw",
        "optimizer.lr": 2e-3,
        "optimizer.weight_decay": 1e-4,
        "optimizer.warmup_epochs": 1,
    }

    @classmethod
    def fitted(cls, task: Task) -> dict[str, Fitted]:
        return {
            "batch_size": Fitted(min(50, task.batch_size), "many views of each image"),
            "epochs": Fitted(max(2, task.epochs // 4), "many views of each image"),
            "method.hidden": task.when_short(1024, 4096),
        }

    def __init__(self, config: Config, backbone: nn.Module, info: RunInfo) -> None:
        super().__init__(config, backbone, info)
        self.projector = mlp(self.width, config.hidden, config.hidden, config.dim)

    def embed(self, batch: Batch) -> dict[str, Tensor]:
        """Return {"z": [B, V, dim]}, the embeddings of all patches."""
        self.expect_views(batch, 2, or_more=True)
        return {"z": batch.by_image(self.projector(self.backbone(batch.views)))}

    def loss(self, embeddings: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the loss and its two terms.

        coding_rate: as a share of the largest that these many embeddings can have; it rises, and near 0 is collapse.
        patch_similarity: mean cosine of a patch's embedding with the mean of its image, which rises to 1.
        """
        z, c = embeddings["z"], self.config
        terms = empssl_terms(z, c.eps)
        return {
            "loss": empssl_sum(terms, c.invariance_weight),
            "coding_rate": terms["coding_rate"].detach() / largest_coding_rate(len(z), c.dim, c.eps),
            "patch_similarity": terms["similarity"].detach(),
        }
