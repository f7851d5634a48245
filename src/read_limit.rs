//! How much a subscriber is asked to read, and the loop that reads and prints it.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use crate::client::{Consumer, Event, Offsets, POLL_WAIT, Record, cut, is_before, is_read_to};
use crate::ending::{Stop, say};
use crate::error::{Error, Result};
use crate::last::Last;
use crate::opener::Opener;
use crate::seal::{self, Read};
use crate::terminal::Output;

/// The end of a reading: a number of messages, the ends of the log at the start, or neither.
pub struct ReadLimit {
    left: Option<u64>,
    ends: Option<Offsets>,
    last: Option<Last>,
    opener: Option<Opener>,
    /// Without a secret: whether the notice about sealed lines was given.
    has_said_sealed: bool,
    /// Whether a line was not shown, or is missing. Shared with the thread that ends a program that is stuck.
    has_fault: Arc<AtomicBool>,
}

impl ReadLimit {
    /// After `count` messages, or at `ends`, whichever comes first.
    pub fn new(count: Option<u64>, ends: Option<Offsets>) -> ReadLimit {
        ReadLimit {
            left: count,
            ends,
            last: None,
            opener: None,
            has_said_sealed: false,
            has_fault: Arc::default(),
        }
    }

    /// Leaves out what is before the last messages.
    pub fn from_last(self, last: Last) -> ReadLimit {
        let last = Some(last);
        ReadLimit { last, ..self }
    }

    /// Prints only the lines that this opens.
    pub fn opening(self, opener: Option<Opener>) -> ReadLimit {
        ReadLimit { opener, ..self }
    }

    /// Prints messages up to the limit, or until asked to stop; `hint` tells a person what is waited for.
    pub fn print(
        mut self,
        consumer: &mut dyn Consumer,
        mut output: Output,
        hint: &str,
        stop: &Stop,
    ) -> Result<()> {
        let read = self.print_all(consumer, &mut output, hint, stop);
        self.say_counts(true);
        read?;
        self.whole_verdict(&consumer.position())()
    }

    fn print_all(
        &mut self,
        consumer: &mut dyn Consumer,
        output: &mut Output,
        hint: &str,
        stop: &Stop,
    ) -> Result<()> {
        while !stop.is_requested() && !self.is_reached(&consumer.position()) {
            let mut printed = Ok(());
            let polled = self.poll(consumer, |limit, record| {
                printed = limit.print_record(record, output);
                match printed {
                    Ok(()) => ControlFlow::Continue(()),
                    Err(_) => ControlFlow::Break(()),
                }
            });
            // What was received is printed, whatever the poll ended with.
            printed.and_then(|()| output.flush())?;
            polled?.iter().for_each(say);
            self.say_counts(false);
            output.hint_once(hint);
        }
        Ok(())
    }

    /// Polls `consumer` once, gives its records to `each`, and takes note of what happens to the log, which it returns.
    pub(crate) fn poll(
        &mut self,
        consumer: &mut dyn Consumer,
        mut each: impl FnMut(&mut ReadLimit, &Record<'_>) -> ControlFlow<()>,
    ) -> Result<Vec<Event>> {
        let mut is_silent = true;
        let events = consumer.poll(POLL_WAIT, &mut |record| {
            is_silent = false;
            each(self, &record)
        })?;
        events.iter().for_each(|event| self.on_event(event));
        if is_silent && events.is_empty() {
            self.on_silence(consumer);
        }
        Ok(events)
    }

    fn print_record(&mut self, record: &Record<'_>, output: &mut Output) -> Result<()> {
        let is_message = output.shows(record) && self.has(record.partition, record.offset);
        let is_asked_for = self.last.as_ref().is_none_or(|last| last.has(record));
        let Some(opener) = self.opener.as_mut().filter(|_| is_message) else {
            if is_message && is_asked_for {
                self.count_one();
                self.say_if_sealed(record, output)?;
                output.message(record, None)?;
            }
            return Ok(());
        };
        if !is_asked_for {
            opener.skip(record);
            return Ok(());
        }
        let Read { notice, line } = opener.read(record, Instant::now());
        if let Some(notice) = notice {
            self.has_fault.store(true, Ordering::SeqCst);
            // In its place among the messages.
            output.flush()?;
            say(notice);
        }
        if let Some(line) = line {
            self.count_one();
            let value = Some(line.text());
            output.message(&Record { value, ..*record }, Some(line.clock))?;
        }
        Ok(())
    }

    /// A sealed value is printed as it is, since a pipe may carry it on; but a person who expects text should know.
    fn say_if_sealed(&mut self, record: &Record<'_>, output: &mut Output) -> Result<()> {
        if self.has_said_sealed || !record.value.is_some_and(seal::is_sealed) {
            return Ok(());
        }
        self.has_said_sealed = true;
        output.flush()?;
        say(seal::notice_without_secret(record.key.unwrap_or_default()));
        Ok(())
    }

    fn say_counts(&mut self, is_end: bool) {
        let counts = self.opener.as_mut();
        let counts = counts.map(|opener| opener.counts(is_end, Instant::now()));
        counts.into_iter().flatten().for_each(say);
    }

    /// A log that was cut, or created again, may end before the end that it had at the start.
    pub(crate) fn on_event(&mut self, event: &Event) {
        if let Some(last) = &mut self.last {
            last.on_event(event);
        }
        if let Some(opener) = &mut self.opener {
            opener.on_event(event);
        }
        match (event, &mut self.ends) {
            (Event::Missed { partition, end, .. }, Some(ends)) => cut(ends, *partition, *end),
            (Event::Recreated { ends: new, .. }, Some(ends)) => {
                new.iter()
                    .for_each(|(partition, end)| cut(ends, *partition, *end));
            }
            _ => {}
        }
    }

    /// Nothing has come: the log may end earlier by now, since the small broker finds damaged messages at its end only
    /// when they are read.
    fn on_silence(&mut self, consumer: &mut dyn Consumer) {
        let Some(ends) = &mut self.ends else {
            return;
        };
        // Without an answer, it is asked again after the next silence.
        for (partition, end) in consumer.end_offsets().into_iter().flatten() {
            cut(ends, partition, end);
        }
    }

    /// The verdict on ending at this position: a failure if there was a limit, and it is not reached.
    pub fn verdict(&self, position: &Offsets) -> Result<()> {
        let is_endless = self.left.is_none() && self.ends.is_none();
        if is_endless || self.is_reached(position) {
            return Ok(());
        }
        Err(Error::failed(
            "interrupted",
            "--count or --until-end was not reached",
        ))
    }

    /// The verdict on ending at this position, and on the lines that are read until it is asked for.
    pub fn whole_verdict(&self, position: &Offsets) -> impl FnOnce() -> Result<()> + use<> {
        let (verdict, has_fault) = (self.verdict(position), Arc::clone(&self.has_fault));
        move || match has_fault.load(Ordering::SeqCst) {
            true => verdict.and(Err(Error::failed(
                "some lines were not shown, or are missing",
                "the notices above say which",
            ))),
            false => verdict,
        }
    }

    /// Whether the record at this place still belongs to what was asked for; if so, it counts.
    pub fn takes(&mut self, partition: i32, offset: i64) -> bool {
        let is_taken = self.has(partition, offset);
        if is_taken {
            self.count_one();
        }
        is_taken
    }

    fn has(&self, partition: i32, offset: i64) -> bool {
        let is_later = |ends: &Offsets| !is_before(ends, partition, offset);
        self.left != Some(0) && !self.ends.as_ref().is_some_and(is_later)
    }

    fn count_one(&mut self) {
        self.left = self.left.map(|left| left - 1);
    }

    /// Whether all has been read, at this position.
    pub fn is_reached(&self, position: &Offsets) -> bool {
        let is_read = |ends: &Offsets| is_read_to(ends, position);
        self.left == Some(0) || self.ends.as_ref().is_some_and(is_read)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_count_ends_after_that_many() {
        let mut limit = ReadLimit::new(Some(2), None);
        assert!(limit.verdict(&Offsets::new()).is_err());
        assert!(limit.takes(0, 7) && limit.takes(1, 0));
        assert!(!limit.takes(0, 8));
        assert!(limit.is_reached(&Offsets::new()));
        assert!(limit.verdict(&Offsets::new()).is_ok());
    }

    #[test]
    fn the_ends_are_those_of_the_start_whatever_comes_later() {
        let mut limit = ReadLimit::new(None, Some(Offsets::from([(0, 3), (1, 0)])));
        assert!(!limit.is_reached(&Offsets::from([(0, 2), (1, 0)])));
        assert!(limit.takes(0, 2));
        assert!(!limit.takes(0, 3) && !limit.takes(1, 0) && !limit.takes(2, 0));
        assert!(limit.is_reached(&Offsets::from([(0, 4), (1, 0), (2, 9)])));
    }

    #[test]
    fn a_partition_that_has_vanished_and_a_log_that_was_cut_are_read_to_their_end() {
        let mut limit = ReadLimit::new(None, Some(Offsets::from([(0, 3), (1, 9)])));
        assert!(!limit.is_reached(&Offsets::from([(0, 3), (1, 2)])));
        assert!(limit.is_reached(&Offsets::from([(0, 3)])));
        limit.on_event(&Event::Missed {
            partition: 1,
            wanted: 5,
            resumed: 2,
            end: 2,
        });
        assert!(limit.is_reached(&Offsets::from([(0, 3), (1, 2)])));
    }

    #[test]
    fn without_either_it_goes_on() {
        let mut limit = ReadLimit::new(None, None);
        assert!(limit.takes(0, i64::MAX) && limit.verdict(&Offsets::new()).is_ok());
        assert!(!limit.is_reached(&Offsets::from([(0, i64::MAX)])));
    }
}
