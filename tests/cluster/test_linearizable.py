"""The checker of histories, on histories whose answer is known; then on those of a real cluster."""
import random
import unittest

from linearizable import Operation, check


def write(value, asked, answered=None):
    return Operation("write", value, asked, *([] if answered is None else [answered]))


def read(value, asked, answered):
    return Operation("read", value, asked, answered)


class Checker(unittest.TestCase):
    def good(self, *operations):
        self.assertIsNone(check(operations))

    def bad(self, *operations):
        self.assertIsNotNone(check(operations))

    def test_one_after_the_other(self):
        self.good(write(1, 0, 1), read(1, 2, 3), write(2, 4, 5), read(2, 6, 7))

    def test_nothing_and_the_beginning(self):
        self.good()
        self.good(read(None, 0, 1), write(1, 2, 3))

    def test_stale_read_is_found(self):
        self.bad(write(1, 0, 1), write(2, 2, 3), read(1, 4, 5))

    def test_lost_write_is_found(self):
        self.bad(write(1, 0, 1), read(None, 2, 3))

    def test_reads_that_go_back_are_found(self):
        # While the write is under way a read may see either, but not the new and then the old.
        self.good(write(1, 0, 1), write(2, 2, 9), read(1, 3, 4), read(2, 5, 6), read(2, 7, 8))
        self.bad(write(1, 0, 1), write(2, 2, 9), read(2, 3, 4), read(1, 5, 6))

    def test_invented_value_is_found(self):
        self.bad(write(1, 0, 1), read(7, 2, 3))

    def test_unknown_outcome_may_be_either(self):
        self.good(write(1, 0, 1), write(2, 2), read(1, 3, 4))
        self.good(write(1, 0, 1), write(2, 2), read(2, 3, 4))
        self.good(write(1, 0, 1), write(2, 2), read(1, 3, 4), read(2, 5, 6))
        self.bad(write(1, 0, 1), write(2, 2), read(2, 3, 4), read(1, 5, 6))
        # It cannot have happened before it was asked.
        self.bad(write(1, 0, 1), read(2, 2, 3), write(2, 4))

    def test_concurrent_writes_in_any_order(self):
        self.good(write(1, 0, 10), write(2, 0, 10), read(1, 11, 12))
        self.good(write(1, 0, 10), write(2, 0, 10), read(2, 11, 12))
        self.bad(write(1, 0, 10), write(2, 0, 10), read(2, 11, 12), read(1, 13, 14))

    def random_history(self, random, count):
        """Of a register that works: each operation happens at a moment of its own."""
        clock, value, history = 0.0, None, []
        for number in range(count):
            clock += random.random()
            asked, answered = clock - random.random(), clock + random.random()
            if random.random() < 0.5:
                value = number
                lost = random.random() < 0.1
                history.append(write(value, asked) if lost else write(value, asked, answered))
            else:
                history.append(read(value, asked, answered))
        return history

    def test_random_histories_of_a_register_that_works(self):
        for seed in range(20):
            with self.subTest(seed=seed):
                self.assertIsNone(check(self.random_history(random.Random(seed), 120)))

    def test_one_read_of_the_distant_past_is_found_in_any_of_them(self):
        for seed in range(20):
            with self.subTest(seed=seed):
                history = self.random_history(random.Random(seed), 120)
                first = next(o for o in history if o.kind == "write" and o.answered < 1e9)
                history.append(read(first.value, 1000, 1001))
                if any(o.kind == "write" and o.answered < 1e9 and o.asked > first.answered
                       for o in history):
                    self.assertIsNotNone(check(history))
