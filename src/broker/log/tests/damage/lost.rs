//! Files that are gone, cut, or not what they were.

use super::*;

type Damage<'a> = &'a dyn Fn(&Path);

/// The log of bob, or of somebody else, with as many lines of the same sizes.
fn log_of(key: &'static str) -> Damaged {
    let line = move |n: usize| {
        let value = format!("line {n} {} {n}", "x".repeat(n % 50));
        encode(
            Some(1_800_000_000_000),
            Some(key.as_bytes()),
            Some(value.as_bytes()),
        )
    };
    Damaged::new((0..1200).map(line))
}

impl Damaged {
    /// The names of its segments.
    fn segments(&self) -> Vec<&str> {
        let names = self.files.iter().map(|(name, _)| name.as_str());
        names.filter(|name| name.ends_with(".log")).collect()
    }

    /// The first offset of a segment, or the end of the log.
    fn base(&self, segment: usize) -> i64 {
        match self.segments().get(segment) {
            Some(name) => name[..20].parse().unwrap(),
            None => self.lines.len() as i64,
        }
    }

    /// Damages the log: exactly these offsets of these segments are missing, and reported with these words.
    fn assert_lost(
        &self,
        damage: Damage<'_>,
        segments: Range<usize>,
        is_left: &dyn Fn(&Range<usize>) -> bool,
        words: &[&str],
    ) {
        let left = self.after(damage);
        let what = format!("{segments:?}: {:?}", left.said);
        let is_kept = |(_, of, range): &&(Line, usize, Range<usize>)| {
            !segments.contains(of) || is_left(range)
        };
        let kept = self.lines.iter().filter(is_kept).map(|(line, ..)| line);
        assert!(left.lines.iter().eq(kept.clone()), "{what}");
        assert_eq!(left.appended, self.base(usize::MAX), "{what}");
        assert_eq!(left.said.len(), words.len(), "{what}");
        for (said, word) in left.said.iter().zip(words) {
            assert!(said.contains(word), "{what}");
        }
        let kept: BTreeSet<i64> = kept.map(|(offset, _)| *offset).collect();
        let all = self.base(segments.start)..self.base(segments.end);
        let lost: Vec<_> = all.filter(|offset| !kept.contains(offset)).collect();
        let reported: Vec<_> = left.said.iter().flat_map(|said| offsets_in(said)).collect();
        assert_eq!(reported, lost, "{what}");
    }
}

#[test]
fn a_lost_file_costs_its_messages_and_is_reported() {
    let log = log_of("bob");
    let zeros = |path: &Path| {
        let len = fs::metadata(path).unwrap().len() as usize;
        fs::write(path, vec![0; len]).unwrap();
    };
    let cut = |path: &Path| {
        let file = OpenOptions::new().write(true).open(path).unwrap();
        file.set_len(5000).unwrap();
    };
    let empty = |path: &Path| fs::write(path, "").unwrap();
    let folder = |path: &Path| {
        fs::remove_file(path).unwrap();
        fs::create_dir(path).unwrap();
    };
    let link = |path: &Path| {
        fs::remove_file(path).unwrap();
        std::os::unix::fs::symlink("/dev/zero", path).unwrap();
    };
    let delete = |path: &Path| fs::remove_file(path).unwrap();
    // The middle of a file is gone.
    let shortened = |path: &Path| {
        let bytes = fs::read(path).unwrap();
        fs::write(path, [&bytes[..5010], &bytes[7010..]].concat()).unwrap();
    };
    type Left<'a> = &'a dyn Fn(&Range<usize>) -> bool;
    let none = |_: &Range<usize>| false;
    let before_the_cut = |range: &Range<usize>| range.end <= 5000;
    let around_the_gap = |range: &Range<usize>| range.end <= 5010 || range.start >= 7010;
    let damages: [(Damage<'_>, Left<'_>, &[&str], &[&str]); 7] = [
        (&zeros, &none, &["damaged"], &["damaged"]),
        (&folder, &none, &["is a folder"], &["is a folder"]),
        (
            &link,
            &none,
            &["is a symbolic link"],
            &["is a symbolic link"],
        ),
        (&delete, &none, &["missing"], &["missing"]),
        (&empty, &none, &["missing"], &["missing"]),
        (
            &cut,
            &before_the_cut,
            &["damaged"],
            &["incomplete", "missing"],
        ),
        (&shortened, &around_the_gap, &["damaged"], &["damaged"]),
    ];
    let segments = log.segments();
    for (damage, is_left, words, words_at_the_end) in damages {
        for (n, name) in segments.iter().enumerate() {
            let is_last = n + 1 == segments.len();
            let words = if is_last { words_at_the_end } else { words };
            log.assert_lost(&|dir| damage(&dir.join(name)), n..n + 1, is_left, words);
        }
    }
}

#[test]
fn offsets_of_files_that_are_gone_from_the_end_are_not_given_again() {
    let log = log_of("bob");
    let segments = log.segments();
    for first in 0..segments.len() {
        let delete = |dir: &Path| {
            for name in &segments[first..] {
                fs::remove_file(dir.join(name)).unwrap();
            }
        };
        log.assert_lost(&delete, first..segments.len(), &|_| false, &["missing"]);
    }
    // The last messages are cut off, and no other is hit.
    let (_, last, _) = log.lines[1199];
    for first in [1190, 1199] {
        let at = log.lines[first].2.start;
        let cut = |dir: &Path| {
            let path = dir.join(segments[last]);
            let file = OpenOptions::new().write(true).open(path).unwrap();
            file.set_len(at as u64).unwrap();
        };
        log.assert_lost(
            &cut,
            last..last + 1,
            &|range| range.start < at,
            &["missing"],
        );
    }
}

#[test]
fn a_segment_of_another_topic_is_not_read() {
    let (log, other) = (log_of("bob"), log_of("eve"));
    let segments = log.segments();
    assert_eq!(other.segments(), segments);
    for (n, name) in segments.iter().enumerate() {
        for (_, bytes) in &other.files[..segments.len()] {
            let swap = |dir: &Path| fs::write(dir.join(name), bytes).unwrap();
            let words = ["does not begin with the line that was written to it first"];
            log.assert_lost(&swap, n..n + 1, &|_| false, &words);
        }
    }
}

#[test]
fn a_damaged_manifest_costs_no_line() {
    let log = log_of("bob");
    let lines = || log.lines.iter().map(|(line, ..)| line);
    let (_, manifest) = log.files.last().unwrap();
    assert!(manifest.len() > 24);
    let assert_whole = |write: Damage<'_>, what: usize| {
        let left = log.after(|dir| write(&dir.join("manifest")));
        assert!(left.lines.iter().eq(lines()), "{what}");
        assert_eq!((left.appended, &left.said[..]), (1200, &[][..]), "{what}");
    };
    for at in 0..manifest.len() {
        let mut bytes = manifest.clone();
        bytes[at] ^= 1 << (at % 8);
        assert_whole(&|path| fs::write(path, &bytes).unwrap(), at);
    }
    for len in [0, 1, 24, 25] {
        assert_whole(&|path| fs::write(path, &manifest[..len]).unwrap(), len);
    }
    assert_whole(&|path| fs::write(path, [0xff; 1000]).unwrap(), 1000);
    assert_whole(&|path| fs::remove_file(path).unwrap(), 0);
}

#[test]
fn damage_under_a_running_broker_is_reported_and_a_reader_goes_on() {
    let dir = TempDir::new().unwrap();
    let (tx, said) = mpsc::channel();
    let config = Config {
        report: Report::to(move |said| tx.send(said.to_string()).unwrap()),
        ..config()
    };
    let log = open(&dir, &config);
    for n in 0..1000 {
        bob(&log).append(&mut line(n)).unwrap();
    }
    assert_eq!(read(&bob(&log), 0).len(), 1000);
    assert_eq!(said.try_recv(), Err(mpsc::TryRecvError::Empty));
    let paths = segments(&dir);
    for path in &paths {
        let mut bytes = fs::read(path).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        fs::write(path, bytes).unwrap();
    }
    assert_eq!(read(&bob(&log), 0).len(), 1000 - paths.len());
    assert_eq!(said.try_iter().count(), paths.len());
    // The last message, after everything was read.
    let path = paths.last().unwrap();
    let mut bytes = fs::read(path).unwrap();
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    fs::write(path, bytes).unwrap();
    assert_eq!(read(&bob(&log), 998).len(), 1);
    let appended = bob(&log).append(&mut line(1)).unwrap();
    assert!(appended >= 1000);
    // One who had read it before, and one who had not.
    for offset in [1000, 999] {
        let found = read(&bob(&log), offset);
        assert_eq!(found, [(appended, line(1)[8..].to_vec())]);
    }
    fs::remove_file(&paths[1]).unwrap();
    let missing = paths[1].file_name().unwrap().to_str().unwrap()[..20]
        .parse()
        .unwrap();
    assert!(read(&bob(&log), missing)[0].0 > missing);
    let end = bob(&log).append(&mut line(2)).unwrap() + 1;
    // The newest file is cut, then deleted.
    let cut = |path: &Path| fs::write(path, "").unwrap();
    let delete = |path: &Path| fs::remove_file(path).unwrap();
    let damages: [Damage<'_>; 2] = [&cut, &delete];
    _ = said.try_iter().count();
    for (end, damage) in (end..).zip(damages) {
        damage(segments(&dir).last().unwrap());
        assert_eq!(bob(&log).append(&mut line(3)).unwrap(), end);
        assert_eq!(read(&bob(&log), end).len(), 1);
        let said: Vec<_> = said.try_iter().collect();
        assert!(said.iter().any(|said| said.contains("missing")), "{said:?}");
    }
}
