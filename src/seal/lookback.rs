//! How far before its start a reader looks for lines that could be repeated to it later.
//!
//! A log can only be read forwards, and nobody knows beforehand how large its records are. So the part before the
//! start is read in windows, the nearest first, each a multiple of the one before. A window that turns out to be
//! too large is left, and read in parts.

use crate::client::Offsets;

/// How many offsets before the start of a partition are read at most.
const MOST_RECORDS: i64 = 10_000;
/// How many bytes of records are enough, in a partition.
const ENOUGH_BYTES: usize = 8 << 20;

/// The first window of a partition, in offsets, and how many times as large the next one is: until one was too large. Then
/// the next is a part of that, and that partition's windows grow no more.
const FIRST_WINDOW: i64 = 512;
const GROWTH: i64 = 32;
const PARTS: i64 = 8;

/// What is still to be read before the start, in each partition.
#[derive(Debug)]
pub struct LookBack(Vec<Part>);

/// One partition: everything from `end` on is read.
#[derive(Debug)]
struct Part {
    partition: i32,
    /// How far back to go at most.
    least: i64,
    end: i64,
    window: i64,
    growth: i64,
    /// Bytes of the windows that were read.
    bytes: usize,
    /// Bytes of this window so far.
    window_bytes: usize,
}

impl Part {
    fn from(&self) -> i64 {
        self.least.max(self.end.saturating_sub(self.window))
    }

    fn is_too_large(&self) -> bool {
        self.window_bytes > ENOUGH_BYTES && self.window > 1
    }
}

impl LookBack {
    /// Before `start`, in logs whose oldest offsets are `oldest`.
    pub fn new(oldest: &Offsets, start: &Offsets) -> LookBack {
        let part = |(&partition, &end): (&i32, &i64)| Part {
            partition,
            least: oldest
                .get(&partition)
                .map_or(end, |&it| it.max(end.saturating_sub(MOST_RECORDS))),
            end,
            window: FIRST_WINDOW,
            growth: GROWTH,
            bytes: 0,
            window_bytes: 0,
        };
        let parts = start.iter().map(part);
        LookBack(parts.filter(|part| part.least < part.end).collect())
    }

    /// The window to be read next, from the first offsets to the second; none at the end. It names only the
    /// partitions in which there is something left to read.
    pub fn window(&self) -> Option<(Offsets, Offsets)> {
        let from = self.0.iter().map(|part| (part.partition, part.from()));
        let to = self.0.iter().map(|part| (part.partition, part.end));
        (!self.0.is_empty()).then(|| (from.collect(), to.collect()))
    }

    /// A record of the window was read. Returns false if its partition turns out to have too many bytes: then the
    /// window need not be read on.
    pub fn on_record(&mut self, partition: i32, bytes: usize) -> bool {
        let Some(part) = self.0.iter_mut().find(|part| part.partition == partition) else {
            return true;
        };
        part.window_bytes += bytes;
        !part.is_too_large()
    }

    /// The window was read, or left. Returns whether its records are to be used: if not, a smaller one comes next.
    pub fn on_window(&mut self) -> bool {
        let is_used = !self.0.iter().any(Part::is_too_large);
        for part in &mut self.0 {
            let is_too_large = part.is_too_large();
            let window_bytes = std::mem::take(&mut part.window_bytes);
            if is_used {
                part.end = part.from();
                part.bytes += window_bytes;
                part.window *= part.growth;
            } else if is_too_large {
                part.window = (part.window / PARTS).max(1);
                part.growth = 1;
            }
        }
        self.0
            .retain(|part| part.least < part.end && part.bytes < ENOUGH_BYTES);
        is_used
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Looks back in one partition whose records have the sizes that `bytes_at` gives. Returns which offsets were
    /// used, and how many bytes were read in all.
    fn look(oldest: i64, start: i64, bytes_at: impl Fn(i64) -> usize) -> (Vec<i64>, usize) {
        let mut look = LookBack::new(&[(0, oldest)].into(), &[(0, start)].into());
        let (mut used, mut read) = (Vec::new(), 0);
        while let Some((from, to)) = look.window() {
            let offsets: Vec<i64> = (from[&0]..to[&0]).collect();
            for &offset in &offsets {
                read += bytes_at(offset);
                if !look.on_record(0, bytes_at(offset)) {
                    break;
                }
            }
            if look.on_window() {
                used.extend(offsets);
            }
        }
        used.sort_unstable();
        (used, read)
    }

    #[test]
    fn all_of_a_short_log_is_read_and_ten_thousand_records_of_a_long_one() {
        for (oldest, start, first) in [
            (0, 0, 0),
            (5, 5, 5),
            (0, 1, 0),
            (7, 600, 7),
            (0, 10_000, 0),
            (0, 1_000_000, 990_000),
        ] {
            let (used, read) = look(oldest, start, |_| 100);
            assert_eq!(used, (first..start).collect::<Vec<_>>());
            assert_eq!(read, used.len() * 100);
        }
    }

    #[test]
    fn of_large_records_the_last_eight_megabytes_are_read_and_not_many_more() {
        for large in [10_000, 100_000, 1_000_000] {
            let cases: [&dyn Fn(i64) -> usize; 3] = [
                &|_| large,
                // Small ones are followed, or preceded, by large ones.
                &|offset| if offset < 50_000 - 600 { large } else { 100 },
                &|offset| if offset < 50_000 - 5 { 100 } else { large },
            ];
            for bytes_at in cases {
                let (used, read) = look(0, 50_000, bytes_at);
                let bytes: usize = used.iter().map(|&it| bytes_at(it)).sum();
                assert_eq!(used, (used[0]..50_000).collect::<Vec<_>>());
                assert!(bytes >= ENOUGH_BYTES || used.len() == 10_000, "{bytes}");
                assert!(read <= 8 * ENOUGH_BYTES, "{read}");
            }
        }
    }

    #[test]
    fn large_records_in_one_partition_make_no_small_windows_in_the_others() {
        let ends = [(0, 10_000), (1, 10_000)].into();
        let mut look = LookBack::new(&[(0, 0), (1, 0)].into(), &ends);
        let mut windows = 0;
        while let Some((from, to)) = look.window() {
            windows += 1;
            let of = |partition| {
                let ends = (from.get(partition)).zip(to.get(partition));
                ends.map_or(0..0, |(from, to)| *from..*to)
            };
            let mut fits = of(&0).all(|_| look.on_record(0, 100));
            let large = |offset| if offset < 10_000 - 9 { 100 } else { 1_000_000 };
            fits &= of(&1).all(|offset| look.on_record(1, large(offset)));
            assert_eq!(look.on_window(), fits);
        }
        assert!(windows < 20, "{windows}");
    }

    #[test]
    fn partitions_are_looked_at_together_and_one_without_an_oldest_offset_is_left_out() {
        let start = [(0, 100), (1, 0), (2, 3), (3, 9)].into();
        let mut look = LookBack::new(&[(0, 0), (1, 0), (2, 1)].into(), &start);
        let window = look.window();
        assert_eq!(
            window,
            Some(([(0, 0), (2, 1)].into(), [(0, 100), (2, 3)].into()))
        );
        assert!(look.on_record(0, 1) && look.on_record(9, 1) && look.on_window());
        assert_eq!(look.window(), None);
    }
}
