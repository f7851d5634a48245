//! When positions and heartbeats are committed, and those of the peer looked up.
//!
//! Pure state: the thread that does the work asks what is due next, and reports when it began.

use std::time::{Duration, Instant};

/// Between two heartbeats.
const BEAT_INTERVAL: Duration = Duration::from_millis(2500);

/// Between two looks at the peer. At the start they are more frequent, so that two heartbeats of a peer who is
/// here are seen within four seconds.
const LOOK_INTERVAL: Duration = Duration::from_secs(3);
const FIRST_LOOK_INTERVAL: Duration = Duration::from_secs(1);
const FIRST_LOOKS: Duration = Duration::from_secs(5);

/// The longest time between two looks at the peer's position. At first it is that of the first looks, and twice as
/// long each time: the position of a peer who does not come stands still, perhaps for days.
const LONGEST_POSITION_INTERVAL: Duration = Duration::from_secs(60);

/// Between two looks of which the second is wanted soon.
const SOON: Duration = Duration::from_millis(500);

/// Between two commits of the position, while more and more is shown.
const COMMIT_INTERVAL: Duration = Duration::from_millis(200);

/// How long a commit that failed waits to be tried again.
const RETRY_INTERVAL: Duration = Duration::from_secs(1);

/// How old a committed position becomes: Kafka forgets it after a week (`offsets.retention.minutes`).
const COMMIT_AGE: Duration = Duration::from_secs(24 * 60 * 60);

/// Something to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Job {
    /// Commit the user's position.
    Commit,
    /// Commit a heartbeat.
    Beat,
    /// Look at the peer's heartbeat.
    Look,
    /// Look at the peer's position, after a look at the heartbeat.
    Position,
}

/// When which job is due.
#[derive(Debug)]
pub(super) struct Schedule {
    opened: Instant,
    /// None before there is a position.
    commit_at: Option<Instant>,
    /// No earlier commit, whatever is shown.
    no_commit_before: Instant,
    beat_at: Instant,
    look_at: Instant,
    no_look_before: Instant,
    /// When the look was begun after which the position is looked up next.
    position_round: Option<Instant>,
    position_at: Instant,
    position_interval: Duration,
}

impl Schedule {
    /// For a chat that is opened now: it beats at once, and looks at the peer.
    pub(super) fn new(now: Instant) -> Schedule {
        Schedule {
            opened: now,
            commit_at: None,
            no_commit_before: now,
            beat_at: now,
            look_at: now,
            no_look_before: now,
            position_round: None,
            position_at: now,
            position_interval: FIRST_LOOK_INTERVAL,
        }
    }

    /// What is due first, and when.
    ///
    /// A heartbeat that is due comes before all else: each of the others may take ten seconds, when a coordinator can't
    /// be reached, and after two of them the user would be gone for the peer.
    pub(super) fn next(&self, now: Instant) -> (Job, Instant) {
        if self.beat_at <= now {
            return (Job::Beat, self.beat_at);
        }
        if let Some(begun) = self.position_round {
            return (Job::Position, begun);
        }
        let (job, at) = match self.beat_at <= self.look_at {
            true => (Job::Beat, self.beat_at),
            false => (Job::Look, self.look_at),
        };
        match self.commit_at {
            Some(commit_at) if commit_at <= at => (Job::Commit, commit_at),
            _ => (job, at),
        }
    }

    /// There is a new position to commit.
    pub(super) fn commit_soon(&mut self, now: Instant) {
        self.commit_at = Some(self.no_commit_before.max(now));
    }

    /// The position was committed, or not, by a request that was sent at that time.
    pub(super) fn committed(&mut self, sent: Instant, is_done: bool) {
        let (again, soonest) = match is_done {
            true => (COMMIT_AGE, COMMIT_INTERVAL),
            false => (RETRY_INTERVAL, RETRY_INTERVAL),
        };
        self.commit_at = Some(sent + again);
        self.no_commit_before = sent + soonest;
    }

    /// A heartbeat was sent at that time.
    pub(super) fn beaten(&mut self, sent: Instant) {
        self.beat_at = sent + BEAT_INTERVAL;
    }

    /// There may be news of the peer.
    pub(super) fn look_soon(&mut self, now: Instant) {
        self.look_at = self.look_at.min(self.no_look_before.max(now));
    }

    /// A look at the peer was begun at that time.
    pub(super) fn looked(&mut self, begun: Instant) {
        let is_start = begun.duration_since(self.opened) < FIRST_LOOKS;
        self.look_at = begun
            + match is_start {
                true => FIRST_LOOK_INTERVAL,
                false => LOOK_INTERVAL,
            };
        self.no_look_before = begun + SOON;
        self.position_round = (self.position_at <= begun).then_some(begun);
    }

    /// The position was looked up, or not: then it is again after the next look.
    pub(super) fn position_looked_up(&mut self, is_done: bool) {
        if let Some(begun) = self.position_round.take().filter(|_| is_done) {
            self.position_at = begun + self.position_interval;
            self.position_interval = (self.position_interval * 2).min(LONGEST_POSITION_INTERVAL);
        }
    }

    /// There may be news of the position: it is looked up after the next look.
    pub(super) fn position_may_move(&mut self, now: Instant) {
        self.position_at = now;
        self.position_interval = FIRST_LOOK_INTERVAL;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A schedule, and a clock that starts with it: times are in milliseconds.
    struct Clock {
        start: Instant,
        now: Instant,
        schedule: Schedule,
    }

    impl Clock {
        fn new() -> Clock {
            let start = Instant::now();
            Clock {
                start,
                now: start,
                schedule: Schedule::new(start),
            }
        }

        fn at(&self, time: u64) -> Instant {
            self.start + Duration::from_millis(time)
        }

        /// Does what is due first, at its time, which succeeds at once, or not.
        fn step(&mut self, is_done: bool) -> (Job, u64) {
            let (job, at) = self.schedule.next(self.now);
            self.now = self.now.max(at);
            match job {
                Job::Commit => self.schedule.committed(at, is_done),
                Job::Beat => self.schedule.beaten(at),
                Job::Look => self.schedule.looked(at),
                Job::Position => self.schedule.position_looked_up(is_done),
            }
            (job, at.duration_since(self.start).as_millis() as u64)
        }

        /// When a job is done until then.
        fn times(&mut self, job: Job, until: u64) -> Vec<u64> {
            let mut times = Vec::new();
            while self.schedule.next(self.now).1 <= self.at(until) {
                let (done, at) = self.step(true);
                times.extend((done == job).then_some(at));
            }
            times
        }
    }

    #[test]
    fn a_chat_beats_first_and_looks_more_often_at_its_start() {
        assert_eq!(Clock::new().step(true), (Job::Beat, 0));
        assert_eq!(
            Clock::new().times(Job::Beat, 10_000),
            [0, 2500, 5000, 7500, 10_000]
        );
        assert_eq!(
            Clock::new().times(Job::Look, 12_000),
            [0, 1000, 2000, 3000, 4000, 5000, 8000, 11_000]
        );
    }

    #[test]
    fn a_look_is_brought_forward_but_not_twice_in_half_a_second() {
        let mut clock = Clock::new();
        clock.times(Job::Look, 5900);
        clock.schedule.look_soon(clock.at(6000));
        assert_eq!(clock.step(true), (Job::Look, 6000));
        clock.schedule.look_soon(clock.at(6100));
        assert_eq!(clock.step(true), (Job::Look, 6500));
        assert_eq!(clock.times(Job::Look, 9500), [9500]);
        clock.schedule.look_soon(clock.at(12_600));
        assert_eq!(clock.times(Job::Look, 12_600), [12_500]);
    }

    #[test]
    fn the_position_is_looked_up_less_and_less_often_unless_it_may_move() {
        let mut clock = Clock::new();
        let looked_up = |clock: &mut Clock, until: u64| -> Vec<u64> {
            let times = clock.times(Job::Position, until);
            times.into_iter().map(|it| it / 1000).collect()
        };
        let first = looked_up(&mut clock, 260_000);
        assert_eq!(first, [0, 1, 3, 8, 17, 35, 68, 128, 188, 248]);
        clock.schedule.position_may_move(clock.at(260_000));
        assert_eq!(looked_up(&mut clock, 275_000), [263, 266, 269, 275]);
    }

    #[test]
    fn a_position_that_could_not_be_looked_up_is_looked_up_after_the_next_look() {
        let mut clock = Clock::new();
        let jobs = [
            Job::Beat,
            Job::Look,
            Job::Position,
            Job::Look,
            Job::Position,
        ];
        assert_eq!(jobs.map(|_| clock.step(false).0), jobs);
    }

    #[test]
    fn whatever_takes_long_a_heartbeat_that_is_due_comes_next() {
        let mut clock = Clock::new();
        clock.schedule.beaten(clock.start);
        clock.schedule.commit_soon(clock.start);
        // Each takes ten seconds.
        for (job, until) in [
            (Job::Commit, 10),
            (Job::Look, 20),
            (Job::Position, 30),
            (Job::Commit, 40),
        ] {
            assert_eq!(clock.step(false).0, job);
            clock.now = clock.at(until * 1000);
            assert_eq!(clock.step(true).0, Job::Beat, "after {until} seconds");
            clock.schedule.beaten(clock.now);
        }
    }

    #[test]
    fn a_position_is_committed_at_once_five_times_a_second_and_again_after_a_day() {
        let mut clock = Clock::new();
        clock.times(Job::Look, 900);
        for (shown, committed) in [(910, 910), (950, 1110), (1200, 1310), (9000, 9000)] {
            clock.schedule.commit_soon(clock.at(shown));
            assert_eq!(clock.times(Job::Commit, committed), [committed]);
        }
        let day = 24 * 60 * 60 * 1000;
        assert_eq!(clock.times(Job::Commit, 9000 + day), [9000 + day]);
    }

    #[test]
    fn a_commit_that_failed_is_tried_again_after_a_second() {
        let mut clock = Clock::new();
        clock.times(Job::Look, 900);
        clock.schedule.commit_soon(clock.at(910));
        assert_eq!(clock.step(false), (Job::Commit, 910));
        clock.schedule.commit_soon(clock.at(920));
        assert_eq!(clock.times(Job::Commit, 2000), [1910]);
    }
}
