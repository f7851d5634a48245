//! Commits the user's position and looks up the peer's, on a thread of its own: a broker may be slow.

use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::time::{Duration, Instant};

use super::Parties;
use crate::client::{GroupOffsets, Offsets};
use crate::ending::spawn;
use crate::error::Result;

/// How often the position is committed, and the peer's looked up.
const INTERVAL: Duration = Duration::from_secs(1);

/// What the chat's owner asks for.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Task {
    /// Commit this position, with the next round. Answered by [`Outcome::Committed`].
    Commit(Offsets),
    /// Commit this position, if there is news, and look up the peer's, now and for the last time. Answered by
    /// [`Outcome::Finished`].
    Finish(Option<Offsets>),
}

/// What came of it.
#[derive(Debug)]
pub(super) enum Outcome {
    /// The user's position is committed, or not.
    Committed(Result<Offsets>),
    /// The peer's position: empty if the peer has none.
    Peer(Result<Offsets>),
    /// There will be no more.
    Finished,
}

/// Starts the thread. It ends when its tasks' sender is dropped, or after [`Task::Finish`].
pub(super) fn start(
    groups: Box<dyn GroupOffsets>,
    parties: Parties,
    notify: impl Fn(Outcome) + Send + 'static,
) -> Result<Sender<Task>> {
    let (tasks, asked) = mpsc::channel();
    let mut worker = Worker {
        groups,
        parties,
        notify,
    };
    spawn("positions", move || worker.run(&asked))?;
    Ok(tasks)
}

struct Worker<N> {
    groups: Box<dyn GroupOffsets>,
    parties: Parties,
    notify: N,
}

impl<N: Fn(Outcome)> Worker<N> {
    fn run(&mut self, tasks: &Receiver<Task>) {
        let mut to_commit = None;
        loop {
            self.round(to_commit.take());
            let next = Instant::now() + INTERVAL;
            loop {
                match tasks.recv_timeout(next.saturating_duration_since(Instant::now())) {
                    Ok(Task::Commit(offsets)) => to_commit = Some(offsets),
                    Ok(Task::Finish(offsets)) => {
                        self.round(offsets);
                        return (self.notify)(Outcome::Finished);
                    }
                    Err(RecvTimeoutError::Timeout) => break,
                    Err(RecvTimeoutError::Disconnected) => return,
                }
            }
        }
    }

    fn round(&mut self, to_commit: Option<Offsets>) {
        if let Some(offsets) = to_commit {
            let (group, topic) = (self.parties.position(), self.parties.reads());
            let committed = self.groups.commit(&group, topic, &offsets);
            (self.notify)(Outcome::Committed(committed.map(|()| offsets)));
        }
        // The tutorial's scripts commit nothing.
        if !self.parties.swapped {
            let (group, topic) = (self.parties.peers_position(), self.parties.writes());
            (self.notify)(Outcome::Peer(self.groups.committed(&group, topic)));
        }
    }
}
