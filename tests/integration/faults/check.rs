//! Compares the lines that senders were given, and their accounts of them, with the log.
//!
//! A line is `SENDER NUMBER`, numbered from 1 by each sender.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

/// The lines that one sender was given, and its own account of them.
#[derive(Debug, Clone)]
pub(crate) struct Sent {
    /// Its name.
    pub(crate) sender: String,
    /// The number of its last line; the first has the number 1.
    pub(crate) lines: u64,
    /// The lines that it named as not delivered. It claims that all others were.
    pub(crate) undelivered: BTreeSet<u64>,
}

/// Counts of lines, good and bad.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Report {
    /// In the log, with all copies.
    pub(crate) lines: u64,
    /// Claimed to be delivered, and missing in the log before a later line of its sender.
    pub(crate) lost: u64,
    /// Claimed to be delivered, and missing at the end of its sender's lines: the sender ended before
    /// it had an acknowledgement.
    pub(crate) said_sent: u64,
    /// In the log for a second time.
    pub(crate) doubled: u64,
    /// After a later line of the same sender.
    pub(crate) reordered: u64,
    /// In the log, but not as any sender was given it.
    pub(crate) foreign: u64,
    /// Named as not delivered.
    pub(crate) undelivered: u64,
    /// Named as not delivered, and in the log: allowed, as the acknowledgement may be lost.
    pub(crate) unsure: u64,
}

impl Report {
    /// Whether no line is lost, doubled, reordered or foreign.
    pub(crate) fn is_clean(&self) -> bool {
        self.lost + self.said_sent + self.doubled + self.reordered + self.foreign == 0
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Report {
            lines,
            lost,
            said_sent,
            doubled,
            reordered,
            foreign,
            undelivered,
            unsure,
        } = self;
        write!(
            f,
            "{lines} lines, {lost} lost, {doubled} doubled, {reordered} reordered, {said_sent} \
             unacknowledged but claimed to be sent, {foreign} foreign; {undelivered} named as not \
             delivered, of which {unsure} are in the log"
        )
    }
}

/// Checks a log, as `subscriber --show-sender` prints it, against what was sent to it.
pub(crate) fn check(sent: &[Sent], log: &[u8]) -> Report {
    let mut report = Report::default();
    let mut seen: BTreeMap<&str, (BTreeSet<u64>, u64)> = sent
        .iter()
        .map(|sent| (sent.sender.as_str(), (BTreeSet::new(), 0)))
        .collect();
    for line in log.split_inclusive(|byte| *byte == b'\n') {
        report.lines += 1;
        let theirs = numbered(line).and_then(|(sender, n)| Some((seen.get_mut(sender)?, n)));
        let Some(((numbers, last), n)) = theirs else {
            report.foreign += 1;
            continue;
        };
        if !numbers.insert(n) {
            report.doubled += 1;
        } else if n < *last {
            report.reordered += 1;
        } else {
            *last = n;
        }
    }
    for sent in sent {
        let Some((numbers, last)) = seen.get(sent.sender.as_str()) else {
            continue;
        };
        report.foreign += numbers
            .iter()
            .filter(|n| !(1..=sent.lines).contains(n))
            .count() as u64;
        report.undelivered += sent.undelivered.len() as u64;
        report.unsure += numbers.intersection(&sent.undelivered).count() as u64;
        for n in (1..=sent.lines).filter(|n| !numbers.contains(n) && !sent.undelivered.contains(n))
        {
            if n < *last {
                report.lost += 1;
            } else {
                report.said_sent += 1;
            }
        }
    }
    report
}

/// The sender and the number of `SENDER: SENDER NUMBER`.
fn numbered(line: &[u8]) -> Option<(&str, u64)> {
    let line = str::from_utf8(line).ok()?.strip_suffix('\n')?;
    let (key, value) = line.split_once(": ")?;
    let (sender, number) = value.split_once(' ')?;
    (key == sender).then_some((sender, number.parse().ok()?))
}

/// The lines that a publisher's error names as not delivered, or perhaps not, of the `given` lines.
///
/// None if the error does not name as many lines as it counts.
pub(crate) fn named_undelivered(error: &str, given: u64) -> Option<BTreeSet<u64>> {
    let head_of = |end| error.split_once(end);
    let (head, list) = head_of(" not delivered:").or_else(|| head_of(" not have arrived:"))?;
    let mut counts = head.rsplit(' ').filter_map(|word| word.parse::<u64>().ok());
    let (read, count) = (counts.next()?, counts.next()?);
    let mut named = BTreeSet::new();
    for line in list.lines() {
        let Some((span, _)) = line
            .trim_start()
            .strip_prefix("line")
            .and_then(|rest| rest.trim_start_matches('s').trim_start().split_once(':'))
        else {
            continue;
        };
        let (first, last) = span.split_once('-').unwrap_or((span, span));
        named.extend(first.parse::<u64>().ok()?..=last.parse().ok()?);
    }
    if named.len() as u64 != count {
        return None;
    }
    // It cannot have sent what it has not read.
    named.extend(read + 1..=given);
    Some(named)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sent(lines: u64, undelivered: &[u64]) -> Vec<Sent> {
        ["ann", "ben"]
            .map(|sender| Sent {
                sender: sender.into(),
                lines,
                undelivered: undelivered.iter().copied().collect(),
            })
            .into()
    }

    fn log(lines: &[(&str, u64)]) -> Vec<u8> {
        let lines = lines.iter().map(|(s, n)| format!("{s}: {s} {n}\n"));
        lines.collect::<String>().into_bytes()
    }

    const WHOLE: [(&str, u64); 6] = [
        ("ann", 1),
        ("ben", 1),
        ("ben", 2),
        ("ann", 2),
        ("ann", 3),
        ("ben", 3),
    ];

    #[test]
    fn a_whole_log_is_clean() {
        let report = check(&sent(3, &[]), &log(&WHOLE));
        assert!(report.is_clean(), "{report}");
        assert_eq!(report.lines, 6);
    }

    #[test]
    fn a_deleted_record_is_lost() {
        let mut lines = WHOLE.to_vec();
        lines.remove(3);
        let report = check(&sent(3, &[]), &log(&lines));
        assert_eq!((report.lost, report.is_clean()), (1, false), "{report}");
    }

    #[test]
    fn missing_last_lines_were_claimed_to_be_sent() {
        let report = check(&sent(3, &[]), &log(&WHOLE[..4]));
        assert_eq!((report.said_sent, report.lost), (2, 0), "{report}");
        assert!(!report.is_clean());
    }

    #[test]
    fn a_record_that_is_in_the_log_twice_is_doubled() {
        let mut lines = WHOLE.to_vec();
        lines.push(("ann", 2));
        let report = check(&sent(3, &[]), &log(&lines));
        assert_eq!((report.doubled, report.reordered), (1, 0), "{report}");
        assert!(!report.is_clean());
    }

    #[test]
    fn swapped_records_are_reordered() {
        let mut lines = WHOLE.to_vec();
        lines.swap(3, 4);
        let report = check(&sent(3, &[]), &log(&lines));
        assert_eq!(
            (report.reordered, report.is_clean()),
            (1, false),
            "{report}"
        );
    }

    #[test]
    fn a_line_that_no_sender_was_given_is_foreign() {
        for strange in [
            "ann: ann 4\n",
            "ann: ben 1\n",
            "eve: eve 1\n",
            "ann: an",
            "\n",
        ] {
            let mut lines = log(&WHOLE);
            lines.extend_from_slice(strange.as_bytes());
            let report = check(&sent(3, &[]), &lines);
            assert_eq!((report.foreign, report.is_clean()), (1, false), "{strange}");
        }
    }

    #[test]
    fn a_line_named_as_not_delivered_can_be_in_the_log_or_not() {
        let report = check(&sent(3, &[3]), &log(&WHOLE[..5]));
        assert!(report.is_clean(), "{report}");
        assert_eq!((report.undelivered, report.unsure), (2, 1), "{report}");
    }

    #[test]
    fn an_error_names_lines_and_spans_of_lines() {
        let words = "publisher: 4 of 8 lines were not delivered, or may not have arrived: \n  \
                     lines 2-4: cannot use topic 'x': gone\nIs it there?\n  line 8: not \
                     acknowledged yet\n";
        assert_eq!(
            named_undelivered(words, 10),
            Some(BTreeSet::from([2, 3, 4, 8, 9, 10]))
        );
        let one = "publisher: 1 of 1 line was not delivered: \n  line 1: x\n";
        assert_eq!(named_undelivered(one, 1), Some(BTreeSet::from([1])));
    }

    #[test]
    fn an_error_that_does_not_name_all_lines_is_no_account() {
        let some = "publisher: 9 of 9 lines were not delivered: \n  line 1: x\n  and 8 more\n";
        assert_eq!(named_undelivered(some, 9), None);
        assert_eq!(
            named_undelivered("publisher: cannot reach Kafka\n", 9),
            None
        );
    }
}
