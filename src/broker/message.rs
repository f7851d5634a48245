//! Kafka's message sets of magic 0 and 1: checked, given offsets, converted down, and read.
//!
//! A message is the same as sent, in the log, and as read, but for its offset; for a timestamp, which the broker gives a
//! message that has none; and for old readers, whose messages have none.
//! <https://kafka.apache.org/documentation/#messageset>
//!
//! ```text
//! offset: i64  message_size: i32  crc: u32  magic: i8  attributes: i8  [timestamp: i64 in magic 1]
//! key: i32 and bytes  value: i32 and bytes
//! ```

use std::iter;
use std::ops::Range;

use crate::wire::{ErrorCode, code};

/// The bytes that `message_size` does not count: itself and the offset.
pub(super) const OVERHEAD: usize = 12;

/// The most bytes of a message with its overhead: Kafka's default for `message.max.bytes`.
pub(super) const MAX_BYTES: usize = 1_048_588;

/// The fewest bytes of a message with its overhead: magic 0, with neither key nor value.
pub(super) const MIN_BYTES: usize = OVERHEAD + 14;

/// Where the fields of a message start.
const CRC: usize = OVERHEAD;
const MAGIC: usize = OVERHEAD + 4;
const ATTRIBUTES: usize = OVERHEAD + 5;
const TIMESTAMP: usize = OVERHEAD + 6;

/// The bits of the attributes that name a compression.
const COMPRESSION: u8 = 7;

/// The bit of the attributes that says that the broker has set the timestamp (KIP-32).
const LOG_APPEND_TIME: u8 = 8;

/// The offset and the size, with the overhead, of the first message in `bytes`, which may be cut
/// after its overhead. `None` if it cannot be a message.
pub(super) fn header(bytes: &[u8]) -> Option<(i64, usize)> {
    let (size, _) = bytes.get(8..)?.split_first_chunk::<4>()?;
    let size = usize::try_from(i32::from_be_bytes(*size)).ok()?;
    let size = size.checked_add(OVERHEAD)?;
    Some((offset(bytes)?, size)).filter(|_| size >= MIN_BYTES)
}

/// The size, with the overhead, that the lengths of key and value give, as far as `bytes` reach that.
pub(super) fn size_by_fields(bytes: &[u8]) -> Option<usize> {
    let mut at = fields_at(bytes)?;
    for _ in 0..2 {
        let (size, _) = bytes.get(at..)?.split_first_chunk::<4>()?;
        let size = i32::from_be_bytes(*size).max(0);
        at += 4 + usize::try_from(size).ok()?;
    }
    Some(at)
}

/// Where the key of a message starts, and its size before that.
fn fields_at(message: &[u8]) -> Option<usize> {
    Some(match message.get(MAGIC)? {
        0 => TIMESTAMP,
        _ => TIMESTAMP + 8,
    })
}

/// How many bytes of `set` are intact messages with the offsets from `next` on.
pub(super) fn intact_bytes(set: &[u8], next: i64) -> usize {
    messages(set)
        .zip(next..)
        .take_while(|(message, next)| has_offset(message, *next) && check(message).is_ok())
        .map(|(message, _)| message.len())
        .sum()
}

/// The whole messages at the start of a message set.
pub(super) fn messages(mut set: &[u8]) -> impl Iterator<Item = &[u8]> {
    iter::from_fn(move || {
        let (_, size) = header(set)?;
        set.split_off(..size)
    })
}

/// Whether a message set begins with a whole message.
pub(super) fn has_whole(set: &[u8]) -> bool {
    messages(set).next().is_some()
}

/// Removes a message that is cut at the end of the message set that starts at `start`.
pub(super) fn remove_cut(buffer: &mut Vec<u8>, start: usize) {
    let whole: usize = messages(&buffer[start..]).map(<[u8]>::len).sum();
    buffer.truncate(start + whole);
}

/// Whether `bytes` are the beginning of a message, of which the rest was not read.
pub(super) fn is_cut(bytes: &[u8]) -> bool {
    match header(bytes) {
        None => bytes.len() < OVERHEAD,
        Some((_, size)) => size > bytes.len(),
    }
}

/// Whether a message has bytes that could be taken for another one with one of these offsets, or for the start of
/// one that ends after it.
pub(super) fn has_lookalike(message: &[u8], offsets: &Range<i64>) -> bool {
    // Its sender chooses the checksum, too, by what it covers.
    let fields = &message[CRC..];
    // An offset that begins in the last bytes goes on in that of the next message.
    let next = offset(message).map_or(0, |it| it + 1).to_be_bytes();
    let mut end = [0; 14];
    end[..7].copy_from_slice(&fields[fields.len() - 7..]);
    end[7..].copy_from_slice(&next[..7]);
    let is_plausible = |bytes: &[u8]| {
        // Text has no zeros, which offsets begin with.
        bytes[0] == 0 && offset(bytes).is_some_and(|found| offsets.contains(&found))
    };
    if end.windows(8).any(is_plausible) {
        return true;
    }
    let starts = fields
        .windows(8)
        .enumerate()
        .filter(|(_, bytes)| is_plausible(bytes));
    starts.into_iter().any(|(at, _)| {
        let rest = &fields[at..];
        // Whether a checksum is right would take too long to find out at each of them.
        match header(rest) {
            None => rest.len() < OVERHEAD,
            Some((_, size)) => size <= MAX_BYTES,
        }
    })
}

/// The offset that `bytes` start with.
fn offset(bytes: &[u8]) -> Option<i64> {
    let (offset, _) = bytes.split_first_chunk::<8>()?;
    Some(i64::from_be_bytes(*offset))
}

/// Gives a message, which may be cut, this offset.
pub(super) fn set_offset(message: &mut [u8], offset: i64) {
    if let Some(bytes) = message.first_chunk_mut() {
        *bytes = offset.to_be_bytes();
    }
}

/// Whether a message begins with this offset.
pub(super) fn has_offset(message: &[u8], wanted: i64) -> bool {
    offset(message) == Some(wanted)
}

/// The checksum that a message has, right or wrong.
pub(super) fn checksum(message: &[u8]) -> Option<u32> {
    let (sum, _) = message.get(OVERHEAD..)?.split_first_chunk()?;
    Some(u32::from_be_bytes(*sum))
}

/// The timestamp of a whole message, in milliseconds since 1970. Magic 0 has none.
pub(super) fn timestamp(message: &[u8]) -> Option<i64> {
    let (timestamp, _) = message[TIMESTAMP..].split_first_chunk()?;
    (message[MAGIC] > 0).then_some(i64::from_be_bytes(*timestamp))
}

/// A message as its reader sees it.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Message<'a> {
    pub(crate) offset: i64,
    /// In milliseconds since 1970.
    pub(crate) timestamp: Option<i64>,
    pub(crate) key: Option<&'a [u8]>,
    pub(crate) value: Option<&'a [u8]>,
}

impl<'a> Message<'a> {
    /// Reads a whole message of magic 0 or 1, whatever its checksum.
    fn read(message: &'a [u8]) -> Option<Message<'a>> {
        if *message.get(MAGIC)? > 1 {
            return None;
        }
        let mut rest = message.get(fields_at(message)?..)?;
        Some(Message {
            offset: offset(message)?,
            timestamp: timestamp(message).filter(|it| *it >= 0),
            key: field(&mut rest)?,
            value: field(&mut rest)?,
        })
    }
}

/// Takes a key or a value off the front of `bytes`. The outer `None` means that it is not whole.
fn field<'a>(bytes: &mut &'a [u8]) -> Option<Option<&'a [u8]>> {
    let size = bytes.split_off(..4)?.try_into().ok()?;
    match i32::from_be_bytes(size) {
        -1 => Some(None),
        size => bytes.split_off(..usize::try_from(size).ok()?).map(Some),
    }
}

/// The whole messages at the start of a message set, as their reader sees them.
pub(crate) fn read_messages(set: &[u8]) -> impl Iterator<Item = Message<'_>> {
    messages(set).map_while(Message::read)
}

/// The largest timestamp of a checked set, or the smallest number if none of its messages has one.
pub(super) fn latest_timestamp(set: &[u8]) -> i64 {
    messages(set)
        .filter_map(timestamp)
        .max()
        .unwrap_or(i64::MIN)
}

/// Checks one message of the size that [`header`] returned.
pub(super) fn check(message: &[u8]) -> Result<(), ErrorCode> {
    // Magic is at the same place in all formats.
    if message[MAGIC] > 1 {
        return Err(code::UNSUPPORTED_FOR_MESSAGE_FORMAT);
    }
    let sum = crc32fast::hash(&message[MAGIC..]);
    if message[CRC..MAGIC] != sum.to_be_bytes() {
        return Err(code::CORRUPT_MESSAGE);
    }
    if message[ATTRIBUTES] & COMPRESSION != 0 {
        return Err(code::UNSUPPORTED_COMPRESSION_TYPE);
    }
    let fields = fields_at(message).and_then(|at| message.get(at..));
    let mut rest = fields.unwrap_or_default();
    let (key, value) = (field(&mut rest), field(&mut rest));
    match key.is_some() && value.is_some() && rest.is_empty() {
        true => Ok(()),
        false => Err(code::CORRUPT_MESSAGE),
    }
}

/// Checks that a message set has whole messages only, which can be appended.
pub(super) fn check_set(mut set: &[u8]) -> Result<(), ErrorCode> {
    while !set.is_empty() {
        let (_, size) = header(set).ok_or(code::CORRUPT_MESSAGE)?;
        // Checked before the size, so that a record batch is refused for its magic.
        if set.get(MAGIC).is_some_and(|&magic| magic > 1) {
            return Err(code::UNSUPPORTED_FOR_MESSAGE_FORMAT);
        }
        if size > MAX_BYTES {
            return Err(code::MESSAGE_TOO_LARGE);
        }
        let (message, rest) = set.split_at_checked(size).ok_or(code::CORRUPT_MESSAGE)?;
        check(message)?;
        set = rest;
    }
    Ok(())
}

/// Gives the messages of a checked set the offsets from `next` on, and returns the offset after the
/// last. `each` gets every offset, and the byte at which its message starts. Checksums do not cover
/// offsets.
pub(super) fn assign_offsets(
    set: &mut [u8],
    mut next: i64,
    mut each: impl FnMut(i64, usize),
) -> i64 {
    let mut at = 0;
    while let Some((_, size)) = header(&set[at..]) {
        set[at..at + 8].copy_from_slice(&next.to_be_bytes());
        each(next, at);
        next += 1;
        at += size;
    }
    next
}

/// How many bytes the messages of a checked set take with a timestamp each; see [`stamp`].
pub(super) fn stamped_bytes(set: &[u8]) -> usize {
    messages(set).map(stamped_size).sum()
}

/// The size of a message once it is stamped. One of magic 0 gets a timestamp if it has room for that.
fn stamped_size(message: &[u8]) -> usize {
    match message[MAGIC] == 0 && message.len() + 8 <= MAX_BYTES {
        true => message.len() + 8,
        false => message.len(),
    }
}

/// Copies a checked set to `out`, which has [`stamped_bytes`], with this timestamp (milliseconds since 1970) for
/// messages of magic 0: they become messages of magic 1 with the time of their append. Only one that is
/// as large as can be stays as it is.
pub(super) fn stamp(set: &[u8], timestamp: i64, mut out: &mut [u8]) {
    for message in messages(set) {
        let (copy, rest) = out.split_at_mut(stamped_size(message));
        out = rest;
        if copy.len() > message.len() {
            copy[..TIMESTAMP].copy_from_slice(&message[..TIMESTAMP]);
            copy[TIMESTAMP..TIMESTAMP + 8].copy_from_slice(&timestamp.to_be_bytes());
            copy[TIMESTAMP + 8..].copy_from_slice(&message[TIMESTAMP..]);
            let message_size = (copy.len() - OVERHEAD) as i32;
            copy[8..OVERHEAD].copy_from_slice(&message_size.to_be_bytes());
            copy[MAGIC] = 1;
            copy[ATTRIBUTES] |= LOG_APPEND_TIME;
            let sum = crc32fast::hash(&copy[MAGIC..]);
            copy[CRC..MAGIC].copy_from_slice(&sum.to_be_bytes());
        } else {
            copy.copy_from_slice(message);
        }
    }
}

/// Converts the message set that starts at `start` to magic 0, in place, by removing timestamps. A
/// message that is cut at the end is removed, too, unless it is the only one: by that a client
/// learns that it asked for too few bytes.
pub(super) fn down_convert(buffer: &mut Vec<u8>, start: usize) {
    let (mut from, mut to) = (start, start);
    while let Some((_, size)) = header(&buffer[from..])
        && size <= buffer.len() - from
    {
        if to < from {
            buffer.copy_within(from..from + size, to);
        }
        let message = &mut buffer[to..to + size];
        from += size;
        to += size;
        if message[MAGIC] > 0 {
            message.copy_within(TIMESTAMP + 8.., TIMESTAMP);
            to -= 8;
            let message = &mut message[..size - 8];
            let message_size = (message.len() - OVERHEAD) as i32;
            message[8..OVERHEAD].copy_from_slice(&message_size.to_be_bytes());
            message[MAGIC] = 0;
            // The other attributes describe the timestamp.
            message[ATTRIBUTES] &= COMPRESSION;
            let sum = crc32fast::hash(&message[MAGIC..]);
            message[CRC..MAGIC].copy_from_slice(&sum.to_be_bytes());
        }
    }
    if to > start {
        buffer.truncate(to);
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A message as a producer sends it: magic 1 if it has a timestamp.
    pub(in super::super) fn encode(
        timestamp: Option<i64>,
        key: Option<&[u8]>,
        value: Option<&[u8]>,
    ) -> Vec<u8> {
        let mut body = vec![timestamp.is_some() as u8, 0];
        body.extend(timestamp.iter().flat_map(|t| t.to_be_bytes()));
        for field in [key, value] {
            body.extend(field.map_or(-1, |f| f.len() as i32).to_be_bytes());
            body.extend_from_slice(field.unwrap_or_default());
        }
        seal(&body)
    }

    /// A message with this body after its checksum.
    fn seal(body: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0; 8];
        bytes.extend((4 + body.len() as i32).to_be_bytes());
        bytes.extend(crc32fast::hash(body).to_be_bytes());
        bytes.extend(body);
        bytes
    }

    /// Any message.
    pub(in super::super) fn any_message() -> impl Strategy<Value = Vec<u8>> {
        let field = || prop::option::of(prop::collection::vec(any::<u8>(), 0..60));
        (prop::option::of(any::<i64>()), field(), field())
            .prop_map(|(timestamp, key, value)| encode(timestamp, key.as_deref(), value.as_deref()))
    }

    #[test]
    fn a_reader_sees_every_field_of_the_read_messages_of_a_set() {
        let read = |set: &[u8]| {
            let fields = |it: Message<'_>| {
                let [key, value] = [it.key, it.value].map(|it| it.map(<[u8]>::to_vec));
                (it.offset, it.timestamp, key, value)
            };
            read_messages(set).map(fields).collect::<Vec<_>>()
        };
        let mut set = encode(Some(7), Some(b"alice"), Some(b"hello"));
        set_offset(&mut set, 4);
        let first = vec![(4, Some(7), Some(b"alice".to_vec()), Some(b"hello".to_vec()))];
        assert_eq!(read(&set), first);
        let mut second = encode(Some(-1), None, Some(b""));
        set_offset(&mut second, 6);
        set.extend(second);
        let third = encode(None, Some(b""), None);
        set.extend(&third);
        let others = vec![
            (6, None, None, Some(Vec::new())),
            (0, None, Some(Vec::new()), None),
        ];
        assert_eq!(read(&set), [first, others].concat());
        // Cut, as the last one of a fetch can be; and with fields that are longer than the message.
        set.pop();
        assert_eq!(read(&set).len(), 2);
        for size in [i32::MAX, 1] {
            let mut wrong = third.clone();
            let value = wrong.len() - 4;
            wrong[value..].copy_from_slice(&size.to_be_bytes());
            assert_eq!(read(&wrong), []);
        }
        let mut newer = third;
        newer[MAGIC] = 2;
        assert_eq!(read(&newer), []);
    }

    #[test]
    fn a_set_that_cannot_be_kept_is_refused_with_the_reason() {
        let good = encode(None, Some(b"alice"), Some(b"hello"));
        assert_eq!(check_set(&good), Ok(()));
        assert_eq!(check_set(&[]), Ok(()));
        assert_eq!(
            check_set(&good[..good.len() - 1]),
            Err(code::CORRUPT_MESSAGE)
        );
        assert_eq!(
            check_set(&[&good[..], &[0; 5]].concat()),
            Err(code::CORRUPT_MESSAGE)
        );
        let compressed = seal(&[0, 1, 255, 255, 255, 255, 0, 0, 0, 1, b'x']);
        assert_eq!(
            check_set(&compressed),
            Err(code::UNSUPPORTED_COMPRESSION_TYPE)
        );
        // A record batch has its size and its magic where a message has them.
        let batch = seal(&[2; 80]);
        assert_eq!(check_set(&batch), Err(code::UNSUPPORTED_FOR_MESSAGE_FORMAT));
        assert_eq!(
            check_set(&[&good[..], &batch].concat()),
            Err(code::UNSUPPORTED_FOR_MESSAGE_FORMAT)
        );
        let room = MAX_BYTES - encode(None, None, Some(b"")).len();
        let most = encode(None, None, Some(&vec![b'x'; room]));
        assert_eq!(check_set(&most), Ok(()));
        let more = encode(None, None, Some(&vec![b'x'; room + 1]));
        assert_eq!(check_set(&more), Err(code::MESSAGE_TOO_LARGE));
        // The checksum is right, but the body is not a message.
        for body in [
            &[0, 0, 0, 0, 0, 9, b'x', 0, 0, 0, 0][..],
            &[0, 0, 255, 255, 255, 254, 0, 0, 0, 0],
            &[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, b'x'],
            &[1, 0, 0, 0, 0, 0, 0, 0, 0, 0],
        ] {
            assert_eq!(
                check_set(&seal(body)),
                Err(code::CORRUPT_MESSAGE),
                "{body:?}"
            );
        }
    }

    #[test]
    fn a_value_looks_like_a_message_if_one_can_be_read_from_it() {
        let forged = |offset: i64, size: usize| {
            let mut message = encode(None, Some(b"bob"), Some(&vec![b'x'; size]));
            message[..8].copy_from_slice(&offset.to_be_bytes());
            message
        };
        let looks = |value: &[u8]| {
            let message = encode(Some(1_800_000_000_000), Some(b"alice"), Some(value));
            has_lookalike(&message, &(5..1000))
        };
        let whole = forged(7, 10);
        let mut damaged = forged(7, 10);
        damaged[30] ^= 1;
        for value in [
            [b"text", &whole[..], b"text"].concat(),
            // What is missing could follow in the next message.
            [b"text", &whole[..30]].concat(),
            [b"text", &whole[..9]].concat(),
            // Its checksum is wrong, which is not looked at.
            damaged,
        ] {
            assert!(looks(&value), "{value:?}");
        }
        for value in [&b"text"[..], &[0; 100], &forged(4, 10), &forged(1000, 10)] {
            assert!(!looks(value), "{value:?}");
        }
        // A timestamp is the offset, and the length of the key the size.
        let message = encode(Some(7), Some(&whole[OVERHEAD..]), None);
        assert!(has_lookalike(&message, &(5..1000)));
        // The same one byte earlier: attributes and most of the timestamp are the offset.
        let message = encode(Some(7 << 8), Some(&[b'x'; 5000]), None);
        assert!(has_lookalike(&message, &(5..1000)));
        // An offset that begins at the end of a value goes on in that of the next message.
        let mut message = encode(Some(1_800_000_000_000), None, Some(b"text\0"));
        message[..8].copy_from_slice(&(7 * 256i64).to_be_bytes());
        assert!(has_lookalike(&message, &(5..1000)));
        message[..8].copy_from_slice(&7i64.to_be_bytes());
        assert!(!has_lookalike(&message, &(5..1000)));
    }

    #[test]
    fn a_message_that_would_be_too_large_with_a_timestamp_gets_none() {
        let room = MAX_BYTES - encode(None, None, Some(b"")).len();
        for (size, more) in [(room - 8, 8), (room - 7, 0), (room, 0)] {
            let message = encode(None, None, Some(&vec![b'x'; size]));
            let mut stamped = vec![0; stamped_bytes(&message)];
            assert_eq!(stamped.len(), message.len() + more);
            stamp(&message, 5, &mut stamped);
            assert_eq!(check_set(&stamped), Ok(()));
            assert_eq!(timestamp(&stamped), (more > 0).then_some(5));
        }
    }

    #[test]
    fn converting_down_keeps_a_first_message_that_is_cut() {
        let cut = &encode(Some(5), None, Some(b"hello"))[..30];
        let mut buffer = cut.to_vec();
        down_convert(&mut buffer, 0);
        assert_eq!(buffer, cut);
    }

    proptest! {
        #[test]
        fn a_timestamp_is_given_to_those_without_and_can_be_removed_again(
            messages in prop::collection::vec(any_message(), 0..9),
        ) {
            let set = messages.concat();
            let mut stamped = vec![0; stamped_bytes(&set)];
            stamp(&set, 5, &mut stamped);
            prop_assert_eq!(check_set(&stamped), Ok(()));
            let mut rest = stamped.as_slice();
            for message in &messages {
                let (_, size) = header(rest).unwrap();
                let expected = timestamp(message).unwrap_or(5);
                prop_assert_eq!(timestamp(&rest[..size]), Some(expected));
                let mut plain = rest[..size].to_vec();
                if timestamp(message).is_none() {
                    down_convert(&mut plain, 0);
                }
                prop_assert_eq!(&plain, message);
                rest = &rest[size..];
            }
            prop_assert!(rest.is_empty());
        }

        #[test]
        fn any_flipped_bit_after_the_offset_is_noticed(
            message in any_message(),
            at in any::<prop::sample::Index>(),
            bit in 0u8..8,
        ) {
            prop_assert_eq!(check_set(&message), Ok(()));
            let at = 8 + at.index(message.len() - 8);
            let mut flipped = message;
            flipped[at] ^= 1 << bit;
            prop_assert!(check_set(&flipped).is_err());
        }

        #[test]
        fn random_bytes_are_refused(bytes in prop::collection::vec(any::<u8>(), 1..200)) {
            prop_assert!(check_set(&bytes).is_err());
            let mut buffer = bytes.clone();
            down_convert(&mut buffer, 0);
            prop_assert!(buffer.len() <= bytes.len());
        }

        #[test]
        fn converting_down_changes_only_the_timestamp(
            messages in prop::collection::vec(
                (prop::option::of(any::<i64>()), prop::option::of(".{0,20}"), prop::option::of(".{0,20}")),
                1..10,
            ),
            cut in any::<prop::sample::Index>(),
        ) {
            let set = |timed: bool| {
                let all = messages.iter().map(|(time, key, value)| encode(
                    time.filter(|_| timed),
                    key.as_ref().map(|k| k.as_bytes()),
                    value.as_ref().map(|v| v.as_bytes()),
                ));
                let mut ends = Vec::new();
                let mut set = Vec::new();
                for message in all {
                    set.extend(message);
                    ends.push(set.len());
                }
                assign_offsets(&mut set, 40, |_, _| ());
                (set, ends)
            };
            let ((timed, timed_ends), (plain, ends)) = (set(true), set(false));
            let mut buffer = [b"before", timed.as_slice()].concat();
            down_convert(&mut buffer, 6);
            prop_assert_eq!(&buffer[6..], &plain[..]);

            // Whole messages before the cut stay.
            let first = timed_ends[0];
            let cut = first + cut.index(timed.len() + 1 - first);
            let whole = timed_ends.iter().filter(|end| **end <= cut).count();
            let mut buffer = timed[..cut].to_vec();
            down_convert(&mut buffer, 0);
            prop_assert_eq!(&buffer[..], &plain[..ends[whole - 1]]);
        }
    }
}
