//! Several senders of numbered lines, and chance that can be repeated.

use std::collections::BTreeSet;
use std::fmt::Write;
use std::sync::{Arc, Condvar, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use super::check::{Sent, said_undelivered};
use crate::support::{Ended, Kafka, Running, user};

/// Numbers that look like chance and are the same for the same seed (SplitMix64).
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

/// Publishers that are fed with lines, as many as are allowed so far.
pub(crate) struct Load {
    allowed: Arc<(Mutex<u64>, Condvar)>,
    feeders: Vec<JoinHandle<(String, u64, Running)>>,
}

impl Load {
    /// Starts so many publishers to a topic. Without [`Load::allow`] they get nothing to send.
    pub(crate) fn start(on: &Kafka, topic: &str, senders: usize, lines: u64, seed: u64) -> Load {
        let allowed = Arc::new((Mutex::new(0), Condvar::new()));
        let feeders = (0..senders)
            .map(|n| {
                let sender = user(&format!("s{n}"));
                let publisher = on.program("publisher", &[&sender, topic]).start();
                let chance = Chance::new(seed ^ (n as u64 + 1).wrapping_mul(0x5851_f42d_4c95_7f2d));
                let allowed = allowed.clone();
                thread::spawn(move || feed(sender, publisher, lines, chance, &allowed))
            })
            .collect();
        Load { allowed, feeders }
    }

    /// Lets every sender go on to this line.
    pub(crate) fn allow(&self, lines: u64) {
        *self.allowed.0.lock().unwrap() = lines;
        self.allowed.1.notify_all();
    }

    /// Ends the input of all senders behind their last line, and gives their accounts.
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

/// Gives a publisher its lines, a few at a time. Ends early when it takes no more.
fn feed(
    sender: String,
    mut publisher: Running,
    lines: u64,
    mut chance: Chance,
    (allowed, changed): &(Mutex<u64>, Condvar),
) -> (String, u64, Running) {
    let mut given = 0;
    let mut chunk = String::new();
    while given < lines {
        let allowed = changed
            .wait_while(allowed.lock().unwrap(), |allowed| *allowed <= given)
            .unwrap();
        let end = (given + 1 + chance.below(40)).min(*allowed).min(lines);
        drop(allowed);
        chunk.clear();
        for n in given + 1..=end {
            writeln!(chunk, "{sender} {n}").unwrap();
        }
        given = end;
        if !publisher.give(chunk.as_bytes()) {
            break;
        }
        // So that batches differ, and what happens meanwhile happens between them, too.
        thread::sleep(chance.pause(3));
    }
    (sender, given, publisher)
}

/// What became of a sender's lines, by its exit code and its last words.
pub(crate) fn account(sender: String, lines: u64, publisher: &Ended) -> Sent {
    let undelivered = match publisher.exit_code() {
        Some(0) => Some(BTreeSet::new()),
        Some(1) => said_undelivered(&publisher.stderr, lines),
        _ => None,
    };
    Sent {
        sender,
        lines,
        undelivered: undelivered
            .unwrap_or_else(|| panic!("it does not account for its lines\n{}", publisher.report())),
    }
}
