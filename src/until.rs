//! When a subscriber has read all that it was asked for.

use crate::client::Offsets;
use crate::error::{Error, Result};

/// The end of a reading: a number of messages, the ends of the log at the start, or neither.
#[derive(Debug)]
pub struct Until {
    left: Option<u64>,
    ends: Option<Offsets>,
}

impl Until {
    /// After `count` messages, or at `ends`, whichever comes first.
    pub fn new(count: Option<u64>, ends: Option<Offsets>) -> Until {
        Until { left: count, ends }
    }

    /// The verdict when it ends at this position, maybe because the user wants it to: a failure only
    /// where there was an end to be reached.
    pub fn verdict(&self, position: &Offsets) -> Result<()> {
        let is_endless = self.left.is_none() && self.ends.is_none();
        if is_endless || self.is_reached(position) {
            return Ok(());
        }
        Err(Error::failed(
            "interrupted",
            "not all was read that was asked for",
        ))
    }

    /// Whether the record at this place still belongs to what was asked for; if so, it counts.
    pub fn takes(&mut self, partition: i32, offset: i64) -> bool {
        let ends = self.ends.as_ref();
        if self.left == Some(0)
            || ends.is_some_and(|ends| ends.get(&partition).is_none_or(|&end| offset >= end))
        {
            return false;
        }
        self.left = self.left.map(|left| left - 1);
        true
    }

    /// Whether all has been read, at this position.
    ///
    /// It is the position that decides, not what was counted: a log may lack offsets.
    pub fn is_reached(&self, position: &Offsets) -> bool {
        let at = |(partition, end)| position.get(partition) >= Some(end);
        self.left == Some(0) || self.ends.as_ref().is_some_and(|ends| ends.iter().all(at))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_count_ends_after_that_many() {
        let mut until = Until::new(Some(2), None);
        assert!(until.verdict(&Offsets::new()).is_err());
        assert!(until.takes(0, 7) && until.takes(1, 0));
        assert!(!until.takes(0, 8));
        assert!(until.is_reached(&Offsets::new()));
        assert!(until.verdict(&Offsets::new()).is_ok());
    }

    #[test]
    fn the_ends_are_those_of_the_start_whatever_comes_later() {
        let mut until = Until::new(None, Some(Offsets::from([(0, 3), (1, 0)])));
        assert!(!until.is_reached(&Offsets::from([(0, 2), (1, 0)])));
        assert!(until.takes(0, 2));
        assert!(!until.takes(0, 3) && !until.takes(1, 0) && !until.takes(2, 0));
        assert!(until.is_reached(&Offsets::from([(0, 4), (1, 0), (2, 9)])));
    }

    #[test]
    fn without_either_it_goes_on() {
        let mut until = Until::new(None, None);
        assert!(until.takes(0, i64::MAX) && until.verdict(&Offsets::new()).is_ok());
        assert!(!until.is_reached(&Offsets::from([(0, i64::MAX)])));
    }
}
