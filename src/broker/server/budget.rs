//! The budget of memory of all connections together, from which each request takes what it and its answer
//! need.
//!
//! A connection has some bytes for itself, which are enough for a line: a chat waits for nobody. Only what is
//! larger takes bytes from the budget. If none are left, requests wait in the order in which they came, and
//! those that have kept theirs for too long end with their connection: one that does not send the rest of
//! its request, does not read its answer, waits for messages, or waits for more memory behind another, holds
//! its memory for 3 seconds at most.
//!
//! A part of the budget is for requests of medium size alone, which wait for each other only: else a long line
//! would wait for as long as others send large requests.
//!
//! Walks over messages are counted in the same way, of which each takes one from a budget of their own.

use std::cell::Cell;
use std::collections::BTreeSet;
use std::io::{self, ErrorKind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::broker::lock;

/// How many bytes a connection has for itself.
pub(super) const OWN_BYTES: usize = 16 * 1024;

/// How long a request may keep bytes of the budget while another waits for some.
const KEEP: Duration = Duration::from_secs(3);

/// How often a request that keeps bytes looks whether another waits.
pub(super) const TICK: Duration = Duration::from_millis(500);

/// How many bytes a request of medium size takes at most, with its answer: a line of 128 KiB, and a copy of it with its
/// time.
pub(super) const MEDIUM_BYTES: usize = 272 * 1024;

/// The part of the budget that is for requests of medium size.
const MEDIUM_PART: usize = 6;

/// The bytes that are left.
#[derive(Debug)]
pub(super) struct Budget {
    /// Locked for a look, and to change it.
    state: Mutex<State>,
    /// Notified when the state has changed.
    changed: Condvar,
    /// How many each request has for itself.
    own: usize,
    /// How long a request waits that keeps none.
    patience: Duration,
    /// From which a request takes all that it needs, if that is more than [`MEDIUM_BYTES`].
    large: Option<Box<Budget>>,
}

#[derive(Debug)]
struct State {
    left: usize,
    is_closed: bool,
    /// The place in the queue of the next request that needs one.
    next_place: u64,
    /// The places of those that wait.
    waiting: BTreeSet<u64>,
}

/// What one request has taken; given back when it is dropped.
pub(super) struct Share<'a> {
    budget: &'a Budget,
    /// Whether it takes bytes from the budget for large requests.
    is_large: Cell<bool>,
    /// Whether its connection is to end: then it does not wait.
    is_ending: &'a AtomicBool,
    /// All that it takes, with the connection's own.
    bytes: Cell<usize>,
    /// What of that is from the budget.
    taken: Cell<usize>,
    /// Its place in the queue, which it has from the first time that it needs the budget.
    place: Cell<Option<u64>>,
    /// Since when it has kept bytes of the budget.
    kept_since: Cell<Option<Instant>>,
}

impl Budget {
    /// A budget of so many bytes, beside `own` that each request has for itself.
    pub(super) fn new(bytes: usize, own: usize, patience: Duration) -> Budget {
        Budget {
            state: Mutex::new(State {
                left: bytes,
                is_closed: false,
                next_place: 0,
                waiting: BTreeSet::new(),
            }),
            changed: Condvar::new(),
            own,
            patience,
            large: None,
        }
    }

    /// The same, of which a part is for requests of medium size.
    pub(super) fn divided(bytes: usize, own: usize, patience: Duration) -> Budget {
        let medium = bytes / MEDIUM_PART;
        let large = Budget::new(bytes - medium, own, patience);
        Budget {
            large: Some(Box::new(large)),
            ..Budget::new(medium, own, patience)
        }
    }

    /// A share for a request, which has taken nothing yet. It does not wait once `is_ending`.
    pub(super) fn share<'a>(&'a self, is_ending: &'a AtomicBool) -> Share<'a> {
        Share {
            budget: self,
            is_large: Cell::new(false),
            is_ending,
            bytes: Cell::new(0),
            taken: Cell::new(0),
            place: Cell::new(None),
            kept_since: Cell::new(None),
        }
    }

    /// Fails all waits, now and later.
    pub(super) fn close(&self) {
        lock(&self.state).is_closed = true;
        self.changed.notify_all();
        if let Some(large) = &self.large {
            large.close();
        }
    }

    /// Whether a large request waits for bytes.
    #[cfg(test)]
    pub(super) fn is_wanted(&self) -> bool {
        let large = self.large.as_deref();
        large.is_some_and(|it| !lock(&it.state).waiting.is_empty())
    }

    fn give_back(&self, bytes: usize) {
        if bytes > 0 {
            lock(&self.state).left += bytes;
            self.changed.notify_all();
        }
    }
}

impl Share<'_> {
    /// Takes so many bytes more, and waits for them if need be. Fails if that takes too long.
    pub(super) fn take(&self, bytes: usize) -> io::Result<()> {
        self.prepare(self.bytes.get() + bytes)?;
        self.wait_for(self.needed(bytes))?;
        self.bytes.set(self.bytes.get() + bytes);
        Ok(())
    }

    /// It will take so many bytes in all: a large one takes all from the budget for such requests.
    pub(super) fn prepare(&self, all: usize) -> io::Result<()> {
        if self.becomes_large(all).is_none() {
            return Ok(());
        }
        let (place, taken) = (self.place.take(), self.taken.take());
        self.is_large.set(true);
        // It keeps what it has until it has as much of the other budget.
        let moved = self.wait_for(taken);
        match moved {
            Ok(()) => self.budget.give_back(taken),
            Err(_) => {
                self.is_large.set(false);
                self.place.set(place);
                self.taken.set(taken);
            }
        }
        moved
    }

    /// The budget for large requests, if it becomes one by taking so many bytes in all.
    fn becomes_large(&self, all: usize) -> Option<&Budget> {
        let large = self.budget.large.as_deref();
        large.filter(|_| all > MEDIUM_BYTES && !self.is_large.get())
    }

    /// The budget that it takes bytes from.
    fn source(&self) -> &Budget {
        let large = self.budget.large.as_deref();
        large.filter(|_| self.is_large.get()).unwrap_or(self.budget)
    }

    /// Takes so many bytes from the budget.
    fn wait_for(&self, needed: usize) -> io::Result<()> {
        if needed == 0 {
            return Ok(());
        }
        let budget = self.source();
        let mut state = lock(&budget.state);
        let place = self.place.get().unwrap_or(state.next_place);
        if self.place.replace(Some(place)).is_none() {
            state.next_place += 1;
        }
        let start = Instant::now();
        state.waiting.insert(place);
        loop {
            let is_first = state.waiting.first() == Some(&place);
            if is_first && state.left >= needed {
                break;
            }
            // The first gets what all others have to give back. Of those behind it, none may
            // keep what it needs.
            let is_over = match self.kept_since.get() {
                Some(since) if !is_first => since.elapsed() > KEEP,
                _ => start.elapsed() > budget.patience,
            };
            let is_ending = state.is_closed || self.is_ending.load(Ordering::SeqCst);
            if is_over || is_ending {
                state.waiting.remove(&place);
                budget.changed.notify_all();
                return Err(ErrorKind::TimedOut.into());
            }
            let waited = budget.changed.wait_timeout(state, TICK);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        state.waiting.remove(&place);
        // It could do nothing with what it kept meanwhile.
        let kept_since = self.kept_since.get().map(|since| since + start.elapsed());
        self.kept_since.set(kept_since);
        self.keep(&mut state, needed);
        budget.changed.notify_all();
        Ok(())
    }

    /// Takes as many of so many bytes as can be had at once, and returns how many: all, or else what is left of the
    /// connection's own.
    pub(super) fn take_up_to(&self, bytes: usize) -> usize {
        let needed = self.needed(bytes);
        let taken = match needed == 0 || self.keep_at_once(needed, self.bytes.get() + bytes) {
            true => bytes,
            false => bytes - needed,
        };
        self.bytes.set(self.bytes.get() + taken);
        taken
    }

    /// Takes so many bytes more from the budget for a request of this size, if they are left and nobody waits.
    fn keep_at_once(&self, mut needed: usize, all: usize) -> bool {
        let large = self.becomes_large(all);
        let moved = large.map_or(0, |_| self.taken.get());
        needed += moved;
        let mut state = lock(&large.unwrap_or(self.source()).state);
        if !state.waiting.is_empty() || state.left < needed {
            return false;
        }
        if large.is_some() {
            self.is_large.set(true);
            self.place.set(None);
            self.taken.set(0);
        }
        self.keep(&mut state, needed);
        drop(state);
        self.budget.give_back(moved);
        true
    }

    /// How many of so many bytes more the budget has to give.
    fn needed(&self, bytes: usize) -> usize {
        let all = self.bytes.get() + bytes;
        all.saturating_sub(self.budget.own + self.taken.get())
    }

    fn keep(&self, state: &mut State, bytes: usize) {
        state.left -= bytes;
        self.taken.set(self.taken.get() + bytes);
        if self.kept_since.get().is_none() {
            self.kept_since.set(Some(Instant::now()));
        }
    }

    /// How much it takes.
    pub(super) fn bytes(&self) -> usize {
        self.bytes.get()
    }

    /// Gives back all but so many bytes.
    pub(super) fn shrink_to(&self, bytes: usize) {
        self.bytes.set(bytes.min(self.bytes.get()));
        let taken = self.bytes.get().saturating_sub(self.budget.own);
        let given = self.taken.replace(taken.min(self.taken.get())) - self.taken.get();
        self.source().give_back(given);
        if self.taken.get() == 0 {
            self.kept_since.set(None);
            if self.is_large.replace(false) {
                self.place.set(None);
            }
        }
    }

    /// Fails if it has kept bytes of the budget for too long and another waits for some.
    pub(super) fn check(&self) -> io::Result<()> {
        let is_old = |since: Instant| since.elapsed() > KEEP;
        match self.kept_since.get().is_some_and(is_old)
            && !lock(&self.source().state).waiting.is_empty()
        {
            true => Err(ErrorKind::TimedOut.into()),
            false => Ok(()),
        }
    }
}

impl Drop for Share<'_> {
    fn drop(&mut self) {
        self.shrink_to(0);
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;
    use crate::broker::server::tests::GOES_ON;
    use crate::testing::{DEADLINE, wait_until};

    #[test]
    fn where_all_is_taken_a_line_still_passes_and_the_keeper_ends_when_another_waits() {
        let budget = Budget::new(100_000, OWN_BYTES, DEADLINE);
        let keeper = budget.share(&GOES_ON);
        keeper.take(OWN_BYTES + 100_000).unwrap();
        let line = budget.share(&GOES_ON);
        line.take(OWN_BYTES - 10).unwrap();
        assert_eq!(line.take_up_to(1000), 10);
        thread::scope(|scope| {
            let waiting = scope.spawn(|| {
                let share = budget.share(&GOES_ON);
                share.take(OWN_BYTES + 1)?;
                io::Result::Ok(share.bytes())
            });
            wait_until("it keeps all", || keeper.check().is_err());
            assert!(!waiting.is_finished());
            drop(keeper);
            assert_eq!(waiting.join().unwrap().unwrap(), OWN_BYTES + 1);
        });
        assert_eq!(lock(&budget.state).left, 100_000);
    }

    #[test]
    fn the_first_that_waits_keeps_what_it_has_until_others_have_given_back_theirs() {
        let budget = Budget::new(3, 0, DEADLINE);
        let keeper = budget.share(&GOES_ON);
        keeper.take(1).unwrap();
        let [first, second] = [budget.share(&GOES_ON), budget.share(&GOES_ON)];
        first.take(1).unwrap();
        second.take(1).unwrap();
        thread::scope(|scope| {
            let first = scope.spawn(move || first.take(2));
            assert!(second.take(1).is_err(), "it waits behind the first");
            drop(second);
            // The first sees within a tick that it has kept its own for too long as well, if that counted.
            thread::sleep(2 * TICK);
            drop(keeper);
            first.join().unwrap().unwrap();
        });
        assert_eq!(lock(&budget.state).left, 3);
    }

    #[test]
    fn a_request_of_medium_size_does_not_wait_for_large_ones_and_becomes_one_when_it_grows() {
        let budget = Budget::divided(6 << 20, OWN_BYTES, DEADLINE);
        let left = || {
            let large = budget.large.as_deref().unwrap();
            (lock(&budget.state).left, lock(&large.state).left)
        };
        let keeper = budget.share(&GOES_ON);
        keeper.take(OWN_BYTES + (5 << 20)).unwrap();
        assert_eq!(left(), (1 << 20, 0));
        thread::scope(|scope| {
            let growing = budget.share(&GOES_ON);
            growing.take(MEDIUM_BYTES).unwrap();
            assert_eq!(growing.take_up_to(1), 0);
            let growing = scope.spawn(move || {
                growing.take(1)?;
                io::Result::Ok(growing)
            });
            wait_until("it does not wait", || budget.is_wanted());
            let medium = budget.share(&GOES_ON);
            medium.take(MEDIUM_BYTES).unwrap();
            assert!(!growing.is_finished());
            drop((keeper, medium));
            let growing = growing.join().unwrap().unwrap();
            assert_eq!(left().0, 1 << 20);
            let taken = MEDIUM_BYTES + 1 - OWN_BYTES;
            assert_eq!(left().1, (5 << 20) - taken);
            growing.shrink_to(0);
            assert_eq!(growing.take_up_to(MEDIUM_BYTES), MEDIUM_BYTES);
            assert_eq!(left(), ((1 << 20) - (taken - 1), 5 << 20));
            assert_eq!(growing.take_up_to(1), 1);
            assert_eq!(left(), (1 << 20, (5 << 20) - taken));
        });
        assert_eq!(left(), (1 << 20, 5 << 20));
    }

    #[test]
    fn a_request_stops_waiting_when_its_connection_is_to_end() {
        let budget = Budget::new(1, OWN_BYTES, DEADLINE * 10);
        let is_ending = AtomicBool::new(false);
        let keeper = budget.share(&GOES_ON);
        keeper.take(OWN_BYTES + 1).unwrap();
        thread::scope(|scope| {
            let waiting = scope.spawn(|| budget.share(&is_ending).take(OWN_BYTES + 1));
            wait_until("it does not wait", || {
                !lock(&budget.state).waiting.is_empty()
            });
            is_ending.store(true, Ordering::SeqCst);
            let start = Instant::now();
            while !waiting.is_finished() && start.elapsed() < DEADLINE {
                thread::yield_now();
            }
            let is_finished = waiting.is_finished();
            drop(keeper);
            assert!(is_finished, "it still waits");
            waiting.join().unwrap().unwrap_err();
        });
        assert!(lock(&budget.state).waiting.is_empty());
    }

    #[test]
    fn nobody_waits_for_a_budget_that_is_closed() {
        let budget = Budget::new(1, OWN_BYTES, DEADLINE);
        let share = budget.share(&GOES_ON);
        budget.close();
        assert!(share.take(OWN_BYTES + 2).is_err());
        assert_eq!(lock(&budget.state).left, 1);
    }
}
