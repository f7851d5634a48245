//! Several senders of numbered lines, and random numbers that can be repeated.

use std::collections::BTreeSet;
use std::fmt::Write;
use std::sync::{Arc, Condvar, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use super::check::{Sent, named_undelivered};
use crate::support::{Ended, PATIENCE, Program, Running, user};

/// Pseudo-random numbers, the same for the same seed (SplitMix64).
#[derive(Clone)]
pub(crate) struct Chance(u64);

impl Chance {
    pub(crate) fn new(seed: u64) -> Chance {
        Chance(seed)
    }

    /// A number from 0 to below `end`.
    pub(crate) fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % end
    }

    /// A time of less than so many milliseconds.
    pub(crate) fn pause(&mut self, milliseconds: u64) -> Duration {
        Duration::from_micros(self.below(milliseconds * 1000))
    }
}

/// Publishers that are given lines, as far as these are allowed.
pub(crate) struct Load {
    senders: Vec<String>,
    gate: Arc<Gate>,
    feeders: Vec<JoinHandle<(String, u64, Running)>>,
}

/// How far the senders may go, and have gone.
struct Gate {
    state: Mutex<GateState>,
    changed: Condvar,
}

struct GateState {
    /// The number of the last line that may be given.
    allowed: u64,
    /// The number of the last line that each sender was given.
    given: Vec<u64>,
}

impl Load {
    /// Starts so many publishers, each with a name. Without [`Load::allow`] they are given nothing to send.
    pub(crate) fn start(
        publisher: impl Fn(&str) -> Program,
        senders: usize,
        lines: u64,
        seed: u64,
    ) -> Load {
        let gate = Arc::new(Gate {
            state: Mutex::new(GateState {
                allowed: 0,
                given: vec![0; senders],
            }),
            changed: Condvar::new(),
        });
        let senders: Vec<String> = (0..senders).map(|n| user(&format!("s{n}"))).collect();
        let feeders = (senders.iter().cloned().enumerate())
            .map(|(n, name)| {
                let publisher = publisher(&name).start();
                let chance = Chance::new(seed ^ (n as u64 + 1).wrapping_mul(0x5851_f42d_4c95_7f2d));
                let gate = gate.clone();
                thread::spawn(move || feed(n, name, publisher, lines, chance, &gate))
            })
            .collect();
        Load {
            senders,
            gate,
            feeders,
        }
    }

    /// The names of the publishers.
    pub(crate) fn senders(&self) -> &[String] {
        &self.senders
    }

    /// Lets every sender go on to this line.
    pub(crate) fn allow(&self, line: u64) {
        self.gate.state.lock().unwrap().allowed = line;
        self.gate.changed.notify_all();
    }

    /// Waits until every sender was given more than this line.
    #[track_caller]
    pub(crate) fn wait_until_given(&self, line: u64) {
        let state = self.gate.state.lock().unwrap();
        let is_behind = |given: &[u64]| given.iter().any(|&given| given <= line);
        let (state, _) = self
            .gate
            .changed
            .wait_timeout_while(state, PATIENCE, |state| is_behind(&state.given))
            .unwrap();
        let given = state.given.clone();
        drop(state);
        assert!(!is_behind(&given), "not all take line {line}: {given:?}");
    }

    /// Gives the senders their last lines, and accounts for all.
    pub(crate) fn end(self, patience: Duration) -> Vec<Sent> {
        self.allow(u64::MAX);
        let feeders = self.feeders.into_iter();
        feeders
            .map(|feeder| {
                let (sender, lines, mut publisher) = feeder.join().unwrap();
                publisher.close();
                account(sender, lines, &publisher.wait_within(patience))
            })
            .collect()
    }
}

/// Gives a publisher its lines, a few at a time, until it reads no more.
fn feed(
    n: usize,
    name: String,
    mut publisher: Running,
    lines: u64,
    mut chance: Chance,
    gate: &Gate,
) -> (String, u64, Running) {
    let mut given = 0;
    let mut chunk = String::new();
    while given < lines {
        let state = gate.state.lock().unwrap();
        let state = gate
            .changed
            .wait_while(state, |state| state.allowed <= given)
            .unwrap();
        let end = (given + 1 + chance.below(40)).min(state.allowed).min(lines);
        drop(state);
        chunk.clear();
        for number in given + 1..=end {
            writeln!(chunk, "{name} {number}").unwrap();
        }
        given = end;
        if !publisher.try_write(&chunk) {
            break;
        }
        gate.state.lock().unwrap().given[n] = given;
        gate.changed.notify_all();
        // So that batches differ in size.
        thread::sleep(chance.pause(3));
    }
    (name, given, publisher)
}

/// What became of a sender's lines, by its exit code and its last words.
pub(crate) fn account(sender: String, lines: u64, publisher: &Ended) -> Sent {
    let undelivered = match publisher.exit_code() {
        Some(0) => Some(BTreeSet::new()),
        Some(1) => named_undelivered(&publisher.stderr, lines),
        _ => None,
    };
    Sent {
        sender,
        lines,
        undelivered: undelivered.unwrap_or_else(|| {
            panic!("it has not accounted for its lines\n{}", publisher.report())
        }),
    }
}
