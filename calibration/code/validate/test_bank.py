"""Tests of a toy bank: what must hold, said one case at a time and then for any sequence of events."""

import random
import threading
from decimal import Decimal

import pytest


class NotEnoughMoney(Exception):
    pass


class Bank:
    """Accounts by name. Money is moved, never made: only `deposit` and `withdraw` change the total."""

    def __init__(self):
        self._balances = {}
        self._lock = threading.RLock()

    def open(self, name, balance=Decimal("0.00")):
        with self._lock:
            if name in self._balances:
                raise ValueError(f"there is an account for {name}")
            self._balances[name] = Decimal(balance)

    def balance(self, name):
        with self._lock:
            return self._balances[name]

    def total(self):
        with self._lock:
            return sum(self._balances.values(), Decimal("0.00"))

    def deposit(self, name, amount):
        amount = self._positive(amount)
        with self._lock:
            self._balances[name] += amount

    def withdraw(self, name, amount):
        amount = self._positive(amount)
        with self._lock:
            if self._balances[name] < amount:
                raise NotEnoughMoney(f"{name} has {self._balances[name]}, not {amount}")
            self._balances[name] -= amount

    def transfer(self, source, target, amount):
        amount = self._positive(amount)
        with self._lock:
            if target not in self._balances:
                raise KeyError(target)
            self.withdraw(source, amount)
            self.deposit(target, amount)

    @staticmethod
    def _positive(amount):
        amount = Decimal(amount)
        if not amount.is_finite() or amount <= 0:
            raise ValueError(f"not an amount: {amount}")
        if amount != amount.quantize(Decimal("0.01")):
            raise ValueError(f"more exact than a cent: {amount}")
        return amount


@pytest.fixture
def bank():
    bank = Bank()
    bank.open("ada", "100.00")
    bank.open("ben", "20.00")
    return bank


def test_a_transfer_moves_money_and_makes_none(bank):
    bank.transfer("ada", "ben", "30.50")
    assert bank.balance("ada") == Decimal("69.50")
    assert bank.balance("ben") == Decimal("50.50")
    assert bank.total() == Decimal("120.00")


def test_a_transfer_that_cannot_be_paid_changes_nothing(bank):
    with pytest.raises(NotEnoughMoney, match="ben has 20.00"):
        bank.transfer("ben", "ada", "20.01")
    assert (bank.balance("ada"), bank.balance("ben")) == (Decimal("100.00"), Decimal("20.00"))


def test_a_transfer_to_nobody_does_not_take_the_money_first(bank):
    with pytest.raises(KeyError):
        bank.transfer("ada", "zoe", "10")
    assert bank.balance("ada") == Decimal("100.00")


def test_money_can_be_sent_to_oneself_and_is_still_there(bank):
    bank.transfer("ada", "ada", "40")
    assert bank.balance("ada") == Decimal("100.00")


@pytest.mark.parametrize("amount", ["0", "-1", "0.001", "NaN", "Infinity"])
def test_what_is_not_an_amount_is_refused_everywhere(bank, amount):
    for act in (bank.deposit, bank.withdraw):
        with pytest.raises(ValueError, match="amount|cent"):
            act("ada", amount)
    assert bank.total() == Decimal("120.00")


@pytest.mark.parametrize("seed", range(20))
def test_no_sequence_of_events_loses_a_cent_or_makes_a_debt(seed):
    rng = random.Random(seed)
    bank = Bank()
    names = [f"n{i}" for i in range(5)]
    for name in names:
        bank.open(name)
    expected = Decimal("0.00")
    for _ in range(300):
        name, other = rng.choice(names), rng.choice(names)
        amount = Decimal(rng.randrange(1, 5000)) / 100
        kind = rng.choice(["deposit", "withdraw", "transfer"])
        try:
            if kind == "deposit":
                bank.deposit(name, amount)
                expected += amount
            elif kind == "withdraw":
                bank.withdraw(name, amount)
                expected -= amount
            else:
                bank.transfer(name, other, amount)
        except NotEnoughMoney:
            pass
        assert bank.total() == expected
        assert all(bank.balance(each) >= 0 for each in names)


def test_two_threads_that_send_money_back_and_forth_do_not_deadlock(bank):
    def send(source, target):
        for _ in range(500):
            try:
                bank.transfer(source, target, "1.00")
            except NotEnoughMoney:
                continue

    threads = [threading.Thread(target=send, args=pair) for pair in [("ada", "ben"), ("ben", "ada")]]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=10)
        assert not thread.is_alive()
    assert bank.total() == Decimal("120.00")
