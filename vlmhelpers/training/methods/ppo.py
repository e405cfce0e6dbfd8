"""PPO for models that see images: `trl.GRPOTrainer` with a critic in place of the group (Schulman et al. 2017,
arXiv:1707.06347; for language models Ouyang et al. 2022, arXiv:2203.02155).

One frozen base serves all roles: the policy is its adapter "default", the reference is the base without adapters (or
TRL's adapter "ref", where the model had adapters before), the critic is a second adapter with a linear head on the last
hidden state. `GRPOTrainer` draws the samples, asks the reward functions, keeps the log-probabilities of policy and
reference, and clips the policy's ratio. Added here: the KL penalty inside the reward, the value of every token, GAE,
the clipped value loss, one sample for each prompt.
"""

from copy import deepcopy
from dataclasses import dataclass, field

import torch
from trl import GRPOConfig, GRPOTrainer
from trl.trainer.utils import split_pixel_values_by_grid, split_tensor_dict, unsplit_pixel_values_by_grid, use_adapter

from vlmhelpers.training.methods.parts import Parts
from vlmhelpers.training.methods.sampling import make_sampler

POLICY, CRITIC = "default", "critic"


@dataclass
class PPOConfig(GRPOConfig):
    """Configuration of `PPOTrainer`: all arguments of `GRPOConfig`, with PPO's defaults, and those of the critic.

    A rollout batch has per_device_train_batch_size * steps_per_generation samples, an even number. It is cut into
    `steps_per_generation` minibatches and gone through `num_iterations` times. `epsilon` clips the policy's ratio.
    Raises ValueError for a rollout batch of one update: the ratio would always be 1; and where
    `ddp_find_unused_parameters` is not True: on several processes DDP takes the mean of the critic's gradients only
    when it looks for what its own forward pass, the policy's, does not use.
    """

    num_generations: int = field(default=1, metadata={"help": "Samples for each prompt."})
    steps_per_generation: int = field(default=2, metadata={"help": "Minibatches of a rollout batch."})
    num_iterations: int = field(default=2, metadata={"help": "Epochs over a rollout batch."})
    beta: float = field(default=0.05, metadata={"help": "Weight of the KL penalty, inside the reward."})
    loss_type: str = field(default="bnpo", metadata={"help": "bnpo: the mean over the tokens of a minibatch."})
    gamma: float = field(default=1.0, metadata={"help": "Discount."})
    lam: float = field(default=0.95, metadata={"help": "Lambda of GAE."})
    cliprange_value: float = field(default=0.2, metadata={"help": "How far a value may move from its old one."})
    critic_learning_rate: float | None = field(default=None, metadata={"help": "None: the policy's."})
    ddp_find_unused_parameters: bool | None = field(default=True, metadata={"help": "True: for the critic."})

    def __post_init__(self):
        samples, self.num_generations = self.num_generations, max(2, self.num_generations)  # GRPOConfig refuses 1
        super().__post_init__()
        self.num_generations = samples
        if not self.ddp_find_unused_parameters:
            raise ValueError("ddp_find_unused_parameters has to be True: else each process has a critic of its own")
        if self.gradient_accumulation_steps % (self.steps_per_generation * self.num_iterations) == 0:
            raise ValueError("a rollout batch makes one update only: raise steps_per_generation or num_iterations")


def gae(
    rewards: torch.Tensor, values: torch.Tensor, mask: torch.Tensor, gamma: float, lam: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Advantages and returns of every token, by generalized advantage estimation (arXiv:1506.02438, eq. 16).

    All are (samples, tokens); `mask` is 1 up to the end of each answer, and nothing is worth anything after it.
    """
    advantages = torch.zeros_like(rewards)
    advantage = following = torch.zeros_like(rewards[:, 0])
    for t in reversed(range(rewards.shape[1])):
        surprise = rewards[:, t] + gamma * following - values[:, t]
        advantage = advantages[:, t] = (surprise + gamma * lam * advantage) * mask[:, t]
        following = values[:, t] * mask[:, t]
    return advantages, (advantages + values) * mask


class PPOTrainer(GRPOTrainer):
    """Takes what `GRPOTrainer` takes, with a `PPOConfig` and adapters: a `peft_config`, or a model that has them.

    Logs besides: `kl`, nats per answer; `policy_loss` and `value_loss`; `value_mean`, `return_std` and
    `explained_variance`, the share of the returns' variance that the critic explains, which says nothing once all
    returns are alike.

    `max_grad_norm` is for the gradients of policy and critic together: large ones of the critic make both smaller.
    From a checkpoint go on by `resume_from`: transformers alone reads the critic, and leaves the policy as it began.
    """

    _tag_names = ["trl", "ppo"]
    _name = "PPO"

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        base, lora = self.model.get_base_model(), deepcopy(self.model.peft_config[POLICY])
        base.value_head = torch.nn.Linear(base.config.get_text_config().hidden_size, 1, device=self.model.device)
        torch.nn.init.zeros_(base.value_head.weight)
        torch.nn.init.zeros_(base.value_head.bias)
        base.value_head.requires_grad_(False)  # peft trains a copy
        lora.modules_to_save = ["value_head"]
        self.model.add_adapter(CRITIC, lora)

    @property
    def critic_parameters(self) -> list[torch.nn.Parameter]:
        """The adapter and the head."""
        return [parameter for name, parameter in self.model.named_parameters() if f".{CRITIC}." in name]

    def create_optimizer(self, *args, **kwargs):
        self.model.set_requires_grad([POLICY, CRITIC])  # peft lets only the active one have gradients
        optimizer = super().create_optimizer(*args, **kwargs)
        critic, rate = set(self.critic_parameters), self.args.critic_learning_rate or self.args.learning_rate
        for group in list(optimizer.param_groups):
            moved = [parameter for parameter in group["params"] if parameter in critic]
            group["params"] = [parameter for parameter in group["params"] if parameter not in critic]
            optimizer.add_param_group(group | {"params": moved, "lr": rate})
        return optimizer

    def _values(self, batch):
        """The value before each token of the answers, by the critic, whose adapter has to be active."""
        inputs = {name: batch[name] for name in self.model_kwarg_keys if batch.get(name) is not None}
        inputs["input_ids"] = torch.cat([batch["prompt_ids"], batch["completion_ids"]], dim=1)
        inputs["attention_mask"] = torch.cat([batch["prompt_mask"], batch["completion_mask"]], dim=1)
        base, tokens = self.model.get_base_model(), batch["completion_ids"].shape[1]
        with self.accelerator.autocast():
            hidden = base.base_model(**inputs, use_cache=False).last_hidden_state[:, -tokens - 1 : -1]
        return base.value_head(hidden.float()).squeeze(-1) * batch["completion_mask"]

    def _calculate_rewards(self, *args):
        self._scores = super()._calculate_rewards(*args)
        return self._scores

    def _generate_and_score_completions(self, inputs):
        batch = super()._generate_and_score_completions(inputs)
        mask = batch["completion_mask"].float()
        parts = self.args.steps_per_generation if self.model.training else 1
        parts = split_tensor_dict(split_pixel_values_by_grid(batch), parts)
        with torch.no_grad(), use_adapter(self.model, CRITIC):
            values = torch.cat([self._values(unsplit_pixel_values_by_grid(part)) for part in parts])
        advantages, returns = gae(self._token_rewards(batch, mask), values, mask, self.args.gamma, self.args.lam)
        on = mask.bool()
        mean, spread = self._mean_and_spread(advantages[on])
        batch |= {"advantages": (advantages - mean) / (spread + 1e-8) * mask, "returns": returns, "values": values}
        self._metrics_now.pop("frac_reward_zero_std", None)  # of groups: every group has one sample here
        self._log_returns(values[on], returns[on])
        return batch

    def _log_returns(self, values, returns):
        (_, spread), (_, error) = self._mean_and_spread(returns), self._mean_and_spread(returns - values)
        self._metrics_now["value_mean"].append(self._mean(values).item())
        self._metrics_now["return_std"].append(spread.item())
        self._metrics_now["explained_variance"].append((1 - (error / spread) ** 2).item())

    @property
    def _metrics_now(self):
        return self._metrics["train" if self.model.training else "eval"]

    def _mean(self, numbers):
        """Over all processes, each of which may have another count."""
        sums = torch.stack([numbers.detach().sum(), numbers.new_tensor(numbers.numel())])
        total, count = self.accelerator.reduce(sums, "sum")
        return total / count

    def _mean_and_spread(self, numbers):
        mean = self._mean(numbers)
        return mean, self._mean((numbers - mean) ** 2).sqrt()

    def _token_rewards(self, batch, mask):
        """The KL penalty at every token, and the score of the whole answer at its last one: (samples, tokens)."""
        rewards = torch.zeros_like(mask)
        if self.beta:  # else TRL keeps no reference, and KL is unknown
            kl = (batch["old_per_token_logps"] - batch["ref_per_token_logps"]) * mask
            rewards -= self.beta * kl
            self._metrics_now["kl"].append(self._mean(kl.sum(dim=1)).item())
        mine = self.accelerator.process_index * len(mask)  # the scores are those of all processes
        scores = (self._scores[mine : mine + len(mask)] * self.reward_weights.to(mask.device)).nansum(dim=1)
        rewards[torch.arange(len(mask)), mask.sum(dim=1).long() - 1] += scores
        return rewards

    def _compute_loss(self, model, inputs):
        value_loss = self._learn_values(inputs)
        beta, self.beta = self.beta, 0.0  # the KL penalty is in the rewards already
        policy_loss = super()._compute_loss(model, inputs)
        self.beta = beta
        self._metrics_now["value_loss"].append(self._mean(value_loss).item())
        self._metrics_now["policy_loss"].append(self._mean(policy_loss).item())
        return policy_loss

    def _learn_values(self, inputs):
        """The clipped value loss; its gradients are the critic's, which shares no parameter with the policy."""
        with use_adapter(self.model, CRITIC):
            values, old, clip = self._values(inputs), inputs["values"], self.args.cliprange_value
            near = old + (values - old).clamp(-clip, clip)
            errors = torch.maximum((values - inputs["returns"]) ** 2, (near - inputs["returns"]) ** 2)
            loss = errors.sum() / inputs["completion_mask"].sum() / 2
            if loss.requires_grad:  # here: gradient checkpointing runs the layers again, with the active adapter
                self.accelerator.backward(loss / self.current_gradient_accumulation_steps)
        return loss


def make_trainer(parts: Parts) -> PPOTrainer:
    """The trainer; policy and critic are adapters of one base."""
    return make_sampler(parts, PPOTrainer, PPOConfig, "critic_learning_rate")
