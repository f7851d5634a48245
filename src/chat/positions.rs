//! Commits the user's position and heartbeats, and looks up the peer's, on a thread of its own: a broker may be slow.

use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::time::{Duration, Instant, UNIX_EPOCH};

use super::Parties;
use super::schedule::{Job, Schedule};
use crate::client::{GroupOffsets, Offsets};
use crate::ending::spawn;
use crate::error::Result;

/// How often the peer's position is looked up while the end of the chat waits for it.
const FINAL_INTERVAL: Duration = Duration::from_millis(100);

/// How long the peer's position is not wanted until what it takes to look it up is given back. While two write to each other,
/// it is wanted again and again.
const RELEASE_AFTER: Duration = Duration::from_secs(20);

/// What the chat's owner asks for.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Task {
    /// Commit this position soon. Answered by [`Outcome::Committed`].
    Commit(Offsets),
    /// Look at the peer soon. Answered by [`Outcome::Beat`].
    Look,
    /// From now on, look up the peer's position, too, or no more.
    WatchPosition(bool),
    /// Commit this position, if there is news, and the end of the heartbeats. Then look up the peer's position,
    /// if that is watched: once before [`Outcome::Finished`], and until the program ends.
    Finish(Option<Offsets>),
}

/// What came of it.
#[derive(Debug)]
pub(super) enum Outcome {
    /// The user's position is committed, or not.
    Committed(Result<Offsets>),
    /// The user's heartbeat is committed, or not.
    OwnBeat(Result<()>),
    /// The peer's heartbeat, if there is one.
    Beat(Result<Option<i64>>),
    /// The peer's position: empty if the peer has none.
    Peer(Result<Offsets>),
    /// The chat can end.
    Finished,
}

/// Starts the thread; `partition` is the one that heartbeats are committed for. It ends when its tasks' sender is
/// dropped.
pub(super) fn start(
    groups: Box<dyn GroupOffsets>,
    parties: Parties,
    partition: i32,
    notify: impl Fn(Outcome) + Send + 'static,
) -> Result<Sender<Task>> {
    let (tasks, asked) = mpsc::channel();
    // The tutorial's scripts commit nothing, and look at nothing.
    let peer_commits = !parties.swapped;
    let mut worker = Worker {
        groups,
        parties,
        partition,
        notify,
        position: Offsets::new(),
        last_beat: None,
        committed_beat: None,
        may_beat: peer_commits,
        may_look: peer_commits,
        may_watch: peer_commits,
        is_watching: true,
        release_at: None,
        peers_beat: None,
        peers_state: PeersState::Still,
    };
    spawn("positions", move || worker.run(&asked))?;
    Ok(tasks)
}

struct Worker<N> {
    groups: Box<dyn GroupOffsets>,
    parties: Parties,
    partition: i32,
    notify: N,
    /// The user's position, committed or to be committed.
    position: Offsets,
    /// The last heartbeat that was sent, and the last one that is certainly committed.
    last_beat: Option<i64>,
    committed_beat: Option<i64>,
    /// This user may commit heartbeats, see the peer's, and see the peer's position: what is denied once is not
    /// asked for again.
    may_beat: bool,
    may_look: bool,
    may_watch: bool,
    /// The peer's position is wanted.
    is_watching: bool,
    /// When what it takes to look it up is given back.
    release_at: Option<Instant>,
    /// The peer's last heartbeat that was seen, and what follows from it.
    peers_beat: Option<i64>,
    peers_state: PeersState,
}

/// What the peer's heartbeat shows. While it stays the same, the peer's position rarely moves: a peer who is here reads
/// lines as they arrive, and one who is not reads none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum PeersState {
    /// The heartbeat has moved.
    Moving,
    /// It stands still, or there is none.
    Still,
    /// It is the last one of a chat.
    Ended,
}

impl<N: Fn(Outcome)> Worker<N> {
    fn run(&mut self, tasks: &Receiver<Task>) {
        let mut schedule = Schedule::new(Instant::now());
        loop {
            let (job, at) = schedule.next(Instant::now());
            match tasks.recv_timeout(at.saturating_duration_since(Instant::now())) {
                Ok(Task::Commit(offsets)) => {
                    self.position = offsets;
                    schedule.commit_soon(Instant::now());
                }
                Ok(Task::Look) => schedule.look_soon(Instant::now()),
                Ok(Task::WatchPosition(is_wanted)) => {
                    self.watch(is_wanted, Instant::now());
                    schedule.position_may_move(Instant::now());
                }
                Ok(Task::Finish(offsets)) => return self.finish(offsets, tasks),
                Err(RecvTimeoutError::Timeout) => self.work(job, Instant::now(), &mut schedule),
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    }

    fn work(&mut self, job: Job, now: Instant, schedule: &mut Schedule) {
        match job {
            Job::Commit => schedule.committed(now, self.commit()),
            Job::Beat => {
                self.beat();
                schedule.beaten(now);
            }
            Job::Look => {
                if self.release_at.is_some_and(|at| at <= now) {
                    self.release_at = None;
                    self.groups.release(&self.parties.peers_position_group());
                }
                if self.look() {
                    schedule.position_may_move(now);
                }
                schedule.looked(now);
            }
            Job::Position => schedule.position_looked_up(self.look_up_position()),
        }
    }

    fn watch(&mut self, is_wanted: bool, now: Instant) {
        self.is_watching = is_wanted;
        self.release_at = (!is_wanted).then(|| now + RELEASE_AFTER);
    }

    /// Returns whether the position is committed.
    fn commit(&mut self) -> bool {
        let (group, topic) = (self.parties.position_group(), self.parties.reads());
        let committed = self.groups.commit(&group, topic, &self.position);
        let is_done = committed.is_ok();
        (self.notify)(Outcome::Committed(
            committed.map(|()| self.position.clone()),
        ));
        is_done
    }

    fn beat(&mut self) {
        if !self.may_beat {
            return;
        }
        // No other chat's heartbeat is the same, and whatever the clock does, it moves.
        let time = UNIX_EPOCH.elapsed().map_or(0, |it| it.as_micros()) as i64;
        let beat = self.last_beat.map_or(1, |last| last + 1).max(time);
        self.last_beat = Some(beat);
        let beaten = self.commit_beat(beat);
        if beaten.is_ok() {
            self.committed_beat = Some(beat);
        }
        self.may_beat = !is_denied(&beaten);
        (self.notify)(Outcome::OwnBeat(beaten));
    }

    fn commit_beat(&mut self, beat: i64) -> Result<()> {
        let (group, topic) = (self.parties.presence_group(), self.parties.reads());
        let offsets = [(self.partition, beat)].into();
        self.groups.commit(&group, topic, &offsets)
    }

    /// Commits the end of the heartbeats, unless another chat of the same two goes on with them.
    fn leave(&mut self) {
        if self.last_beat.is_none() || !self.may_beat {
            return;
        }
        let (group, topic) = (self.parties.presence_group(), self.parties.reads());
        let stands = self.groups.committed(&group, topic);
        // The last one may have failed just now, because the broker was away.
        let own = [self.last_beat, self.committed_beat];
        let is_own = |beat: &i64| own.contains(&Some(*beat));
        if stands.is_ok_and(|it| it.get(&self.partition).is_none_or(is_own)) {
            // If it fails, the peer notices that the heartbeats stand still.
            _ = self.commit_beat(0);
        }
    }

    /// Returns whether the peer may have come or gone, and so the position moved.
    fn look(&mut self) -> bool {
        if !self.may_look {
            return false;
        }
        let (group, topic) = (self.parties.peers_presence_group(), self.parties.writes());
        let beat = self.groups.committed(&group, topic);
        let beat = beat.map(|offsets| offsets.values().next().copied());
        self.may_look = !is_denied(&beat);
        let before = self.peers_state;
        if let Ok(beat) = beat {
            self.peers_state = match std::mem::replace(&mut self.peers_beat, beat) {
                _ if beat == Some(0) => PeersState::Ended,
                last if last == beat => PeersState::Still,
                _ => PeersState::Moving,
            };
        }
        (self.notify)(Outcome::Beat(beat));
        self.peers_state != before
    }

    /// Returns whether the position is known now.
    fn look_up_position(&mut self) -> bool {
        if !(self.may_watch && self.is_watching) {
            return false;
        }
        let (group, topic) = (self.parties.peers_position_group(), self.parties.writes());
        let position = self.groups.committed(&group, topic);
        self.may_watch = !is_denied(&position);
        let is_known = position.is_ok();
        (self.notify)(Outcome::Peer(position));
        is_known
    }

    fn finish(&mut self, position: Option<Offsets>, tasks: &Receiver<Task>) {
        if let Some(position) = position {
            self.position = position;
            self.commit();
        }
        self.leave();
        self.look_up_position();
        (self.notify)(Outcome::Finished);
        while tasks.recv_timeout(FINAL_INTERVAL) == Err(RecvTimeoutError::Timeout) {
            self.look_up_position();
        }
    }
}

fn is_denied<T>(result: &Result<T>) -> bool {
    result.as_ref().is_err_and(|error| error.is_denied())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::error::Error;
    use crate::name::Name;

    /// The offsets of groups, of which each request is reported.
    struct Groups {
        committed: BTreeMap<String, Offsets>,
        /// These may not be used.
        denied: &'static str,
        requests: Sender<String>,
    }

    impl Groups {
        fn ask(&self, request: String, group: &str) -> Result<()> {
            self.requests.send(request).unwrap();
            match group.starts_with(self.denied) {
                true => Err(Error::denied("cannot use the group", "not allowed")),
                false => Ok(()),
            }
        }
    }

    impl GroupOffsets for Groups {
        fn committed(&mut self, group: &str, topic: &Name) -> Result<Offsets> {
            self.ask(format!("look up {group} in {topic}"), group)?;
            Ok(self.committed.get(group).cloned().unwrap_or_default())
        }

        fn commit(&mut self, group: &str, topic: &Name, offsets: &Offsets) -> Result<()> {
            let end = if offsets[&3] == 0 { " the end" } else { "" };
            self.ask(format!("commit{end} of {group} in {topic}"), group)?;
            self.committed.insert(group.to_string(), offsets.clone());
            Ok(())
        }

        fn release(&mut self, group: &str) {
            self.requests.send(format!("release {group}")).unwrap();
        }
    }

    /// The broker is away.
    struct Away;

    impl GroupOffsets for Away {
        fn committed(&mut self, _: &str, _: &Name) -> Result<Offsets> {
            Err(Error::failed("cannot look", "no answer"))
        }

        fn commit(&mut self, _: &str, _: &Name, _: &Offsets) -> Result<()> {
            Err(Error::failed("cannot commit", "no answer"))
        }
    }

    /// Alice's worker, and the requests that it has made.
    fn alice(denied: &'static str) -> (Worker<impl Fn(Outcome)>, Receiver<String>) {
        let (requests, made) = mpsc::channel();
        let name = |name: &str| name.parse().unwrap();
        let groups = Groups {
            committed: BTreeMap::new(),
            denied,
            requests,
        };
        let worker = Worker {
            groups: Box::new(groups),
            parties: Parties::new(name("alice"), name("bob"), false, false).unwrap(),
            partition: 3,
            notify: drop,
            position: [(3, 7)].into(),
            last_beat: None,
            committed_beat: None,
            may_beat: true,
            may_look: true,
            may_watch: true,
            is_watching: true,
            release_at: None,
            peers_beat: None,
            peers_state: PeersState::Still,
        };
        (worker, made)
    }

    fn do_all<N: Fn(Outcome)>(worker: &mut Worker<N>) {
        let mut schedule = Schedule::new(Instant::now());
        for job in [Job::Beat, Job::Look, Job::Position, Job::Commit] {
            worker.work(job, Instant::now(), &mut schedule);
        }
    }

    #[test]
    fn the_position_of_the_peer_is_looked_up_only_while_it_is_watched() {
        let (mut worker, made) = alice("-");
        for position in [&["look up chat:bob:alice in bob"][..], &[]] {
            do_all(&mut worker);
            let expected = [
                &[
                    "commit of here:alice:bob in alice",
                    "look up here:bob:alice in bob",
                ],
                position,
                &["commit of chat:alice:bob in alice"],
            ];
            assert_eq!(made.try_iter().collect::<Vec<_>>(), expected.concat());
            worker.is_watching = false;
        }
    }

    #[test]
    fn what_it_takes_to_look_up_the_position_is_given_back_once_after_a_while() {
        let (mut worker, made) = alice("-");
        let now = Instant::now();
        let mut schedule = Schedule::new(now);
        let seconds = |n| now + Duration::from_secs(n);
        for (watch, at, is_released) in [
            (None, 60, false),
            (Some(false), 61, false),
            (None, 80, false),
            (Some(true), 80, false),
            (None, 120, false),
            (Some(false), 120, false),
            (None, 139, false),
            (None, 140, true),
            (None, 200, false),
        ] {
            if let Some(is_wanted) = watch {
                worker.watch(is_wanted, seconds(at));
            }
            worker.work(Job::Look, seconds(at), &mut schedule);
            let was_released = made.try_iter().any(|it| it == "release chat:bob:alice");
            assert_eq!(was_released, is_released, "after {at} s");
        }
    }

    #[test]
    fn the_position_of_the_peer_is_looked_up_again_at_once_when_the_peer_comes_or_goes() {
        let (mut worker, made) = alice("-");
        let now = Instant::now();
        let mut schedule = Schedule::new(now);
        worker.work(Job::Beat, now, &mut schedule);
        for (beat, is_looked_up) in [
            (None, true),
            (None, false),
            (Some(5), true),
            (Some(6), false),
            (Some(6), true),
            (Some(6), false),
            (Some(7), true),
            (Some(0), true),
            (Some(0), false),
        ] {
            if let Some(beat) = beat {
                let (group, topic) = (
                    worker.parties.peers_presence_group(),
                    worker.parties.writes(),
                );
                let offsets = [(3, beat)].into();
                worker.groups.commit(&group, topic, &offsets).unwrap();
            }
            worker.work(Job::Look, now, &mut schedule);
            let (next, _) = schedule.next(now);
            worker.work(next, now, &mut schedule);
            let was_looked_up = made.try_iter().any(|it| it.contains("chat:bob:alice"));
            assert_eq!(was_looked_up, is_looked_up, "{beat:?}");
        }
    }

    #[test]
    fn what_is_denied_once_is_not_asked_for_again() {
        for (denied, others) in [("here:", 2), ("chat:bob:", 3)] {
            let (mut worker, made) = alice(denied);
            do_all(&mut worker);
            assert_eq!(made.try_iter().count(), 4);
            do_all(&mut worker);
            assert_eq!(made.try_iter().count(), others, "{denied}");
        }
    }

    #[test]
    fn the_end_of_the_heartbeats_is_committed_unless_those_of_another_chat_stand() {
        let end = "commit the end of here:alice:bob in alice";
        for (stands, is_ended) in [
            (None, true),
            (Some(1), true),
            (Some(2), false),
            (Some(0), false),
        ] {
            let (mut worker, made) = alice("-");
            worker.leave();
            assert_eq!(made.try_iter().count(), 0);
            worker.last_beat = Some(1);
            if let Some(beat) = stands {
                _ = worker.commit_beat(beat);
            }
            worker.leave();
            let was_ended = made
                .try_iter()
                .skip(usize::from(stands.is_some()))
                .any(|it| it == end);
            assert_eq!(was_ended, is_ended, "{stands:?}");
        }
    }

    #[test]
    fn the_end_of_the_heartbeats_is_committed_after_one_that_failed() {
        let (mut worker, made) = alice("-");
        worker.beat();
        let groups = std::mem::replace(&mut worker.groups, Box::new(Away));
        worker.beat();
        worker.groups = groups;
        worker.leave();
        let last = made.try_iter().last();
        let end = "commit the end of here:alice:bob in alice";
        assert_eq!(last.as_deref(), Some(end));
    }
}
