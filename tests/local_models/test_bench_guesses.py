"""What speculative tokens save, in the short form of the benchmark."""

from __future__ import annotations

from local_models.bench_guesses import guess_cases


def test_the_likeliest_guesses_save_more_than_those_in_order() -> None:
    """At the same budget, greedy and sampled; as many are kept as under the best rule of acceptance."""
    for row in guess_cases(40, 2, (2,)):
        tokens, guesses = row["tokens_a_pass"], row["guesses_a_pass"]
        assert tokens["likeliest first"]["value"] > tokens["in turn"]["value"] > 1.0
        assert guesses["likeliest first"]["value"] >= tokens["likeliest first"]["value"] - 1.0001
        assert abs(row["kept_of_optimum"]["value"] - 1.0) < 0.02
