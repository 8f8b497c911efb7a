"""The rewards that a language model gives: ``judge`` scores answers one by one, ``ranked-judge`` ranks a group's."""
