"""The algorithms that come with agentrl: each a choice of parts, with its sources and when to use it."""

from __future__ import annotations

from agentrl.algorithms.contract import Preset

__all__ = ["cispo", "dapo", "distill", "dppo", "dr_grpo", "grpo", "gspo", "ppo", "reinforce_plus_plus", "rloo", "sft"]

grpo = Preset(
    credit={"name": "credit.tree"},
    advantage={"name": "advantage.group"},
    normalisation={"name": "normalisation.sequence"},
    correction={"name": "correction.ratio"},
    objective={"name": "objective.clip"},
    sources=[
        "Shao et al. 2024, DeepSeekMath, arXiv:2402.03300, eq. 3 and section 4.1.2",
        "Ye et al. 2020, arXiv:1912.09729, eq. 5 (dual clip)",
    ],
    use="The default, for rewards that tell the answers to one task apart. It weighs short and long answers alike, and "
    "so favours short right answers and long wrong ones a little.",
)
"""Group relative policy optimisation (Shao et al. 2024, eq. 3), without the KL term to a reference model.

The KL term holds a policy near its start; with verifiable rewards it costs a second model in memory and slows
learning down, and current practice leaves it out (Yu et al. 2025, section 2.3; Liu et al. 2025).
"""

ppo = Preset(
    credit={"name": "credit.tree"},
    advantage={"name": "advantage.gae"},
    normalisation={"name": "normalisation.token"},
    correction={"name": "correction.ratio"},
    objective={"name": "objective.clip"},
    critic={"name": "critic.clip"},
    sources=[
        "Schulman et al. 2017, Proximal policy optimization algorithms, arXiv:1707.06347, eq. 7 and 9",
        "Schulman et al. 2016, Generalized advantage estimation, arXiv:1506.02438, eq. 16",
    ],
    use="For long episodes whose turns matter unequally, and for tasks that are done once: a value head says how much "
    "better a token turned out than expected. It learns more slowly at first, since the value head has to learn too.",
)
"""Proximal policy optimisation (Schulman et al. 2017) with a value head on the policy's own hidden states."""

dr_grpo = Preset(
    credit={"name": "credit.tree"},
    advantage={"name": "advantage.group", "scale": "none"},
    normalisation={"name": "normalisation.constant"},
    correction={"name": "correction.ratio"},
    objective={"name": "objective.clip"},
    sources=["Liu et al. 2025, Understanding R1-Zero-like training, arXiv:2503.20783, section 3.2 and eq. 5"],
    use="Where wrong answers grow longer under grpo, or tasks differ in how much their rewards spread: it divides "
    "neither by lengths nor by the standard deviation. Rewards of a known scale are needed, such as 0 and 1. Set "
    "algorithm.normalisation.length to rollout.max_tokens where that is not 128.",
)
"""GRPO done right (Liu et al. 2025): no division by the standard deviation of rewards or by an answer's length."""

dapo = Preset(
    credit={"name": "credit.tree"},
    advantage={"name": "advantage.group"},
    filter={"name": "filter.zero_variance"},
    normalisation={"name": "normalisation.token"},
    correction={"name": "correction.ratio"},
    objective={"name": "objective.clip", "clip_high": 0.28},
    sources=["Yu et al. 2025, DAPO, arXiv:2503.14476, eq. 8 and sections 3.1 to 3.3; eq. 13 is shaping.over_long"],
    use="For long answers, and where many groups are all right or all wrong. Set rollout.dynamic_sampling=2 to have "
    "those replaced, and algorithm.shaping=[{name: over_long, longest: …, margin: …}] for answers near their limit.",
)
"""Decoupled clip and dynamic sampling policy optimisation (Yu et al. 2025): clip-higher, and a mean over tokens."""

rloo = Preset(
    credit={"name": "credit.tree"},
    advantage={"name": "advantage.leave_one_out"},
    normalisation={"name": "normalisation.constant"},
    correction={"name": "correction.truncated"},
    objective={"name": "objective.reinforce"},
    sources=[
        "Ahmadian et al. 2024, Back to Basics, arXiv:2402.14740, section 3.3",
        "Yao et al. 2025, Your efficient RL framework secretly brings you off-policy RL training (the correction)",
    ],
    use="For small groups: its gradient is unbiased even with two episodes of a task. It does not clip, so learning "
    "rates have to be moderate.",
)
"""REINFORCE leave-one-out (Ahmadian et al. 2024): each episode against the mean of the group's others, unclipped."""

reinforce_plus_plus = Preset(
    credit={"name": "credit.tree"},
    advantage={"name": "advantage.batch"},
    normalisation={"name": "normalisation.token"},
    correction={"name": "correction.ratio"},
    objective={"name": "objective.clip"},
    sources=["Hu et al. 2025, REINFORCE++, arXiv:2501.03262, section on global advantage normalization"],
    use="Where a task is done once or twice only: episodes are compared with the whole step, so rollout.group_size=1 "
    "learns too. With larger groups set algorithm.advantage.baseline=group.",
)
"""REINFORCE++ (Hu et al. 2025): advantages whitened over the whole step, with PPO's clip, without its KL term."""

gspo = Preset(
    credit={"name": "credit.tree"},
    advantage={"name": "advantage.group"},
    normalisation={"name": "normalisation.sequence"},
    correction={"name": "correction.ratio"},
    objective={"name": "objective.gspo", "clip_low": 0.03, "clip_high": 0.04},
    sources=["Zheng et al. 2025, Group Sequence Policy Optimization, arXiv:2507.18071, eq. 5, 7, 13 and 14"],
    use="For mixtures of experts and long answers, where ratios of single tokens are noisy. The bounds are a hundred "
    "times the paper's 3e-4 and 4e-4, which suit learning rates near 1e-6: at those of small models they would cut off "
    "nearly everything with rollout.max_staleness above 0.",
)
"""Group sequence policy optimisation (Zheng et al. 2025): the ratio and the clip of whole answers."""

cispo = Preset(
    credit={"name": "credit.tree"},
    advantage={"name": "advantage.group"},
    normalisation={"name": "normalisation.token"},
    correction={"name": "correction.ratio"},
    objective={"name": "objective.cispo"},
    sources=[
        "MiniMax 2025, MiniMax-M1, arXiv:2506.13585, eq. 4 and 5",
        "Khatri et al. 2025, ScaleRL, arXiv:2510.13786 (the bound)",
    ],
    use="For asynchronous training and rare but decisive tokens: no token loses its gradient, and old ones weigh no "
    "more than the bound.",
)
"""Clipped importance sampling policy optimisation (MiniMax 2025): weights are clipped, and never a token's update."""

dppo = Preset(
    credit={"name": "credit.tree"},
    advantage={"name": "advantage.group"},
    normalisation={"name": "normalisation.token"},
    correction={"name": "correction.ratio"},
    objective={"name": "objective.dppo"},
    sources=["Qi et al. 2026, Rethinking the Trust Region in LLM RL, arXiv:2602.04879, eq. 12 to 14"],
    use="Where engine and learner differ in numerics, or training is asynchronous, and clipped ratios stop rare tokens "
    "from being learned.",
)
"""Divergence proximal policy optimisation (Qi et al. 2026): a trust region of probabilities instead of ratios."""

distill = Preset(
    credit={"name": "credit.episode"},
    advantage={"name": "advantage.teacher"},
    normalisation={"name": "normalisation.token"},
    correction={"name": "correction.ratio"},
    objective={"name": "objective.clip"},
    sources=[
        "Agarwal et al. 2024, On-policy distillation of language models, arXiv:2306.13649, section 3",
        "Gu et al. 2024, MiniLLM, arXiv:2306.08543, eq. 2",
    ],
    use="Where a larger model of the same family does the task: every token is judged by it, so it needs far fewer "
    "episodes than rewards do. An episode needs some reward to be trained, and any serves. Set "
    "algorithm.advantage.model to the teacher.",
)
"""On-policy distillation (Agarwal et al. 2024): the policy samples, and a teacher judges every token of it."""

sft = Preset(
    credit={"name": "credit.episode"},
    advantage={"name": "advantage.one"},
    normalisation={"name": "normalisation.token"},
    correction={"name": "correction.ratio"},
    objective={"name": "objective.likelihood"},
    sources=["Maximum likelihood: the mean negative log-probability of the tokens that are imitated"],
    use="Before reinforcement learning, where a model cannot do a task at all and examples are at hand.",
    command="sft",
)
"""Supervised fine-tuning: imitates given conversations, or chosen episodes; ``agentrl sft`` trains with it."""
