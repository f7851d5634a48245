//! What of a topic is found on disk, and what of that is damaged.

use std::collections::VecDeque;
use std::fmt::Display;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::segment::{Offsets, Segment};
use super::topic::{Topic, next_offset, total};
use super::walk::Walk;
use super::{MAX_OFFSET, manifest};
use crate::broker::files::{append_at, check_dir, create, open_to_read, read_part};
use crate::broker::lock;
use crate::broker::message::{self, MIN_BYTES};

impl Topic {
    /// Searches for the segments on disk again, after something there was changed by others.
    pub(super) fn reload(&self, segments: &mut VecDeque<Segment>) -> io::Result<()> {
        let next = next_offset(segments);
        for segment in segments.iter() {
            self.open_files.close(&segment.path(&self.dir));
        }
        let mut found = self.load()?;
        // An offset is never given twice, also not if this fails.
        if next_offset(&found) < next {
            self.push(&mut found, next)?;
        }
        *segments = found;
        Ok(())
    }

    pub(super) fn load(&self) -> io::Result<VecDeque<Segment>> {
        let _turn = lock(&self.loading);
        check_dir(&self.dir)?;
        let records = manifest::read(&self.dir)?;
        let mut segments = VecDeque::new();
        for entry in fs::read_dir(&self.dir)? {
            let entry = entry?;
            let name = entry.file_name();
            let base = name.to_str().and_then(|n| n.strip_suffix(".log"));
            let base = base.and_then(|b| b.parse().ok());
            let Some(base) = base.filter(|base| (0..=MAX_OFFSET).contains(base)) else {
                continue;
            };
            let found = entry.metadata()?;
            let mut segment = Segment::new(base, self.offset_limit(base, found.len()));
            // A number that is written in another way is not ours.
            if segment.path(&self.dir).file_name() == Some(&name) {
                // Anything but a file is left alone, and has no messages.
                if found.is_file() {
                    // Its end is found by `Segment::index`.
                    (segment.len, segment.index) = (found.len(), None);
                }
                segment.record = records.get(&base).copied();
                segments.push_back(segment);
            }
        }
        segments
            .make_contiguous()
            .sort_unstable_by_key(|segment| segment.base);
        if let Some((base, newest)) = records.last_key_value()
            && segments
                .back()
                .is_none_or(|last: &Segment| last.base < *base)
        {
            // The newest segment is gone.
            let end = newest.end;
            self.push(&mut segments, end)?;
            // As one that was found.
            if let Some(pushed) = segments.back_mut() {
                pushed.index = None;
            }
        }
        for i in 1..segments.len() {
            let base = segments[i].base;
            (segments[i - 1].next, segments[i - 1].end) = (Some(base), base);
        }
        for i in 0..segments.len() {
            if segments[i].index.is_some() || self.is_another(&segments[i])? {
                self.lose_whole(&mut segments, i)?;
            }
        }
        match segments.front() {
            None => segments.push_back(Segment::new(0, self.offset_limit(0, 0))),
            Some(oldest) if oldest.base > 0 && total(&segments) < self.config.retention_bytes => {
                let said = Offsets::of(0..oldest.base).sentence(&self.name, "missing");
                self.say(said, self.dir.display());
            }
            Some(_) => {}
        }
        let last = segments.len() - 1;
        if segments[last].index.is_none() {
            self.check_last(&mut segments)?;
        }
        // The end of the log has to be known, which is after the last intact message.
        for i in (0..last).rev() {
            if segments[i + 1].has_messages() {
                break;
            }
            self.check(&mut segments[i])?;
        }
        Ok(segments)
    }

    /// Whether a segment begins with an intact message that is not the one that was appended to it first, nor one that
    /// was appended later.
    fn is_another(&self, segment: &Segment) -> io::Result<bool> {
        let Some(first) = segment.record.and_then(|record| record.first) else {
            return Ok(false);
        };
        let path = segment.path(&self.dir);
        let head = read_part(&path, 0, segment.len.min(MIN_BYTES as u64))?;
        let Some((offset, size)) = message::header(&head) else {
            return Ok(false);
        };
        let is_later = (segment.base + 1..segment.bounds().limit).contains(&offset);
        let is_whole = size <= message::MAX_BYTES && size as u64 <= segment.len;
        if message::checksum(&head) == Some(first) || is_later || !is_whole {
            return Ok(false);
        }
        Ok(message::check(&read_part(&path, 0, size as u64)?).is_ok())
    }

    /// Reports a segment of which nothing can be read, since it is not a file, or not the one that was written.
    fn lose_whole(&self, segments: &mut VecDeque<Segment>, i: usize) -> io::Result<()> {
        let segment = &mut segments[i];
        let (path, base) = (segment.path(&self.dir), segment.base);
        let is_last = segment.next.is_none();
        let known = segment.next.or(segment.record.map(|record| record.end));
        let end = known.unwrap_or(segment.offset_limit);
        (segment.end, segment.len, segment.index) = (base, 0, Some(Vec::new()));
        segment.lost.add(base..end);
        let said = segment.lost.sentence(&self.name, "lost");
        let said = said.map(|it| if known.is_none() { up_to(it) } else { it });
        let what = match path.symlink_metadata()? {
            found if found.is_dir() => "is a folder",
            found if found.is_symlink() => "is a symbolic link",
            found if found.is_file() => "does not begin with the line that was written to it first",
            _ => "is not a file",
        };
        self.say(said, format_args!("{} {what}", path.display()));
        match is_last {
            true => self.push(segments, end),
            false => Ok(()),
        }
    }

    /// Finds the messages of a segment that is not the last one, and reports what is damaged.
    pub(super) fn check(&self, segment: &mut Segment) -> io::Result<()> {
        let Some(len) = segment.index(&self.dir)? else {
            return Ok(());
        };
        self.say_repaired(segment);
        let path = segment.path(&self.dir);
        let (end, next) = (segment.end, segment.next.unwrap_or(segment.end));
        // A torn message was reported when it was set aside.
        let aside = fs::symlink_metadata(torn_path(&path)).map_or(0, |found| found.len());
        let is_torn = len == segment.len && aside > 0 && next - end <= most_messages(aside);
        let is_whole = len == segment.len && segment.lost.is_empty();
        let mut said = segment.lost.clone();
        segment.lost.add(end..next);
        if !is_torn {
            said = segment.lost.clone();
        }
        let how = if is_whole { "missing" } else { "damaged" };
        self.say(said.sentence(&self.name, how), path.display());
        Ok(())
    }

    /// Finds the messages of the last segment. A message at its end that is not complete is set aside
    /// into a file of its own; anything else that is damaged stays. Its offset is not given again.
    fn check_last(&self, segments: &mut VecDeque<Segment>) -> io::Result<()> {
        let Some(segment) = segments.back_mut() else {
            return Ok(());
        };
        let len = segment.index(&self.dir)?.unwrap_or(segment.len);
        let path = segment.path(&self.dir);
        self.say_repaired(segment);
        let said = segment.lost.sentence(&self.name, "damaged");
        self.say(said, path.display());
        let rest = segment.len - len;
        let (end, known) = (segment.end, segment.record.map_or(0, |record| record.end));
        if rest == 0 {
            return match known > end {
                true => self.go_on(segments, end, known),
                false => Ok(()),
            };
        }
        let tail = read_part(&path, len, rest.min(message::MAX_BYTES as u64))?;
        let size = message::header(&tail).filter(|(offset, _)| *offset == end);
        let size = size
            .map(|(_, size)| size)
            .filter(|size| *size <= message::MAX_BYTES);
        let is_torn = rest < MIN_BYTES as u64 || size.is_some_and(|size| size as u64 > rest);
        let counted = match is_torn {
            true => {
                let is_sure = size.is_some() && size == message::size_by_fields(&tail);
                (is_sure || known > end).then_some(1)
            }
            false => {
                let file = open_to_read(&path)?;
                let walk = Walk::new(&file, &path, (end, len), segment.bounds());
                let rest = (known > end).then_some(known - end);
                walk.count_by_sizes()?.or(rest)
            }
        };
        // Where nothing tells, there may have been as many messages as there is room for.
        let after = end + counted.unwrap_or(most_messages(rest));
        let lost = Offsets::of(end..after);
        if is_torn {
            let aside = torn_path(&path);
            let file = create(&aside)?;
            append_at(&file, &file.metadata()?, 0, &tail)?;
            let said = lost.sentence(&self.name, "incomplete");
            self.say(said, aside.display());
            // The next segment keeps the offset from being given again; so it comes before the cut.
            segment.len = len;
            self.go_on(segments, after, known)?;
            return create(&path)?.set_len(len);
        }
        segment.lost.add(end..after);
        let said = lost.sentence(&self.name, "damaged");
        let said = said.map(|it| if counted.is_some() { it } else { up_to(it) });
        self.say(said, path.display());
        self.go_on(segments, after, known)
    }

    /// Appends go on in a new segment, with the offset `after`; or with `end` if the log had messages up to that. Those
    /// between are gone, and are reported.
    fn go_on(&self, segments: &mut VecDeque<Segment>, after: i64, end: i64) -> io::Result<()> {
        if let Some(segment) = segments.back_mut() {
            segment.lost.add(after..end);
            let said = Offsets::of(after..end).sentence(&self.name, "missing");
            self.say(said, segment.path(&self.dir).display());
        }
        self.push(segments, after.max(end))
    }

    /// Reports which messages have another offset in the file.
    fn say_repaired(&self, segment: &Segment) {
        let said = segment.repaired.sentence(&self.name, "repaired");
        self.say(said, segment.path(&self.dir).display());
    }

    /// Reports what was lost, and where.
    pub(super) fn say(&self, lost: Option<String>, place: impl Display) {
        if let Some(lost) = lost {
            self.config.report.say(format!("{lost}: {place}"));
        }
    }
}

/// The file for a message at the end of the segment at `path` that is not complete.
pub(super) fn torn_path(path: &Path) -> PathBuf {
    path.with_extension("torn")
}

/// A sentence about as many lines as there can have been at most.
fn up_to(lost: String) -> String {
    format!("up to {lost}")
}

/// How many messages so many bytes can have been, if they are more than none.
fn most_messages(bytes: u64) -> i64 {
    (bytes / MIN_BYTES as u64).max(1) as i64
}
