//! How much a subscriber is asked to read, and the loop that reads and prints it.

use std::ops::ControlFlow;

use crate::client::{Consumer, Event, Offsets, POLL_WAIT, is_before, is_read_to};
use crate::ending::{Stop, say};
use crate::error::{Error, Result};
use crate::last::Last;
use crate::terminal::Output;

/// The end of a reading: a number of messages, the ends of the log at the start, or neither.
#[derive(Debug)]
pub struct ReadLimit {
    left: Option<u64>,
    ends: Option<Offsets>,
    last: Option<Last>,
}

impl ReadLimit {
    /// After `count` messages, or at `ends`, whichever comes first.
    pub fn new(count: Option<u64>, ends: Option<Offsets>) -> ReadLimit {
        ReadLimit {
            left: count,
            ends,
            last: None,
        }
    }

    /// Leaves out what is before the last messages.
    pub fn from_last(self, last: Last) -> ReadLimit {
        let last = Some(last);
        ReadLimit { last, ..self }
    }

    /// Prints messages up to the limit, or until asked to stop; `hint` tells a person what is waited for.
    pub fn print(
        mut self,
        consumer: &mut dyn Consumer,
        mut output: Output,
        hint: &str,
        stop: &Stop,
    ) -> Result<()> {
        while !stop.is_requested() && !self.is_reached(&consumer.position()) {
            let mut printed = Ok(());
            let polled = consumer.poll(POLL_WAIT, &mut |record| {
                if output.shows(&record)
                    && self.last.as_ref().is_none_or(|last| last.has(&record))
                    && self.takes(record.partition, record.offset)
                {
                    printed = output.message(&record);
                }
                match printed {
                    Ok(()) => ControlFlow::Continue(()),
                    Err(_) => ControlFlow::Break(()),
                }
            });
            // What was received is printed, whatever the poll ended with.
            printed.and_then(|()| output.flush())?;
            for event in polled? {
                say(&event);
                self.on_event(&event);
            }
            output.hint_once(hint);
        }
        self.verdict(&consumer.position())
    }

    /// A log that was cut, or created again, may end before the end that it had at the start.
    pub(crate) fn on_event(&mut self, event: &Event) {
        if let Some(last) = &mut self.last {
            last.on_event(event);
        }
        let Some(ends) = &mut self.ends else {
            return;
        };
        let mut cut = |partition, end: &i64| {
            ends.entry(partition).and_modify(|it| *it = *end.min(it));
        };
        match event {
            Event::Missed { partition, end, .. } => cut(*partition, end),
            Event::Recreated { ends: new, .. } => {
                new.iter().for_each(|(partition, end)| cut(*partition, end));
            }
            _ => {}
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

    /// Whether the record at this place still belongs to what was asked for; if so, it counts.
    pub fn takes(&mut self, partition: i32, offset: i64) -> bool {
        let is_later = |ends: &Offsets| !is_before(ends, partition, offset);
        if self.left == Some(0) || self.ends.as_ref().is_some_and(is_later) {
            return false;
        }
        self.left = self.left.map(|left| left - 1);
        true
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
