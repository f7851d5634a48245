//! Kafka's message sets of magic 0 and 1: checked, numbered, and converted down.
//!
//! What a producer sends is what lies in the log and what a consumer gets, but for the offsets.
//! <https://kafka.apache.org/documentation/#messageset>
//!
//! ```text
//! offset: i64  message_size: i32  crc: u32  magic: i8  attributes: i8  [timestamp: i64 in magic 1]
//! key: i32 and bytes  value: i32 and bytes
//! ```

/// The bytes before what `message_size` counts: that, and the offset.
pub(super) const OVERHEAD: usize = 12;

/// The most bytes that a message may take with its overhead: Kafka's default for
/// `message.max.bytes`.
pub(super) const MAX_BYTES: usize = 1_048_588;

/// The fewest that a message can take: magic 0, with neither key nor value.
const MIN_BYTES: usize = OVERHEAD + 14;

/// Where magic lies in a message, and where what is behind it.
const CRC: usize = OVERHEAD;
const MAGIC: usize = OVERHEAD + 4;
const ATTRIBUTES: usize = OVERHEAD + 5;
const TIMESTAMP: usize = OVERHEAD + 6;

/// The bits of the attributes that name a compression.
const COMPRESSION: u8 = 7;

/// Why a message set can't be appended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Refused {
    /// A checksum or a length in it is wrong.
    Corrupt,
    /// A message takes more than [`MAX_BYTES`].
    TooLarge,
    /// It is compressed.
    Compressed,
    /// It is neither magic 0 nor 1, but a record batch of magic 2, say.
    Magic,
}

/// The offset and the whole size of the message at the front of `bytes`, of which at least the
/// overhead must be there. `None` if it can't be a message.
pub(super) fn header(bytes: &[u8]) -> Option<(i64, usize)> {
    let (offset, rest) = bytes.split_first_chunk::<8>()?;
    let (size, _) = rest.split_first_chunk::<4>()?;
    let size = usize::try_from(i32::from_be_bytes(*size)).ok()?;
    let size = size.checked_add(OVERHEAD)?;
    (size >= MIN_BYTES).then_some((i64::from_be_bytes(*offset), size))
}

/// The time of a whole message, in milliseconds since 1970. Magic 0 has none.
pub(super) fn timestamp(message: &[u8]) -> Option<i64> {
    if message[MAGIC] == 0 {
        return None;
    }
    let (timestamp, _) = message[TIMESTAMP..].split_first_chunk::<8>()?;
    Some(i64::from_be_bytes(*timestamp))
}

/// Checks one whole message, as [`header`] measured it.
pub(super) fn check(message: &[u8]) -> Result<(), Refused> {
    // Magic lies in the same place in all formats, so that they can be told apart.
    let fields = match message[MAGIC] {
        0 => TIMESTAMP,
        1 => TIMESTAMP + 8,
        _ => return Err(Refused::Magic),
    };
    let sum = crc32fast::hash(&message[MAGIC..]);
    if message[CRC..MAGIC] != sum.to_be_bytes() {
        return Err(Refused::Corrupt);
    }
    if message[ATTRIBUTES] & COMPRESSION != 0 {
        return Err(Refused::Compressed);
    }
    let rest = message
        .get(fields..)
        .and_then(skip_field)
        .and_then(skip_field);
    match rest {
        Some([]) => Ok(()),
        _ => Err(Refused::Corrupt),
    }
}

/// What follows a key or a value.
fn skip_field(bytes: &[u8]) -> Option<&[u8]> {
    let (size, rest) = bytes.split_first_chunk::<4>()?;
    match i32::from_be_bytes(*size) {
        -1 => Some(rest),
        size => rest.get(usize::try_from(size).ok()?..),
    }
}

/// Checks a message set: nothing but whole messages that may be appended.
pub(super) fn check_set(mut set: &[u8]) -> Result<(), Refused> {
    while !set.is_empty() {
        let (_, size) = header(set).ok_or(Refused::Corrupt)?;
        // A record batch has its magic at the same place, and is told by it before its size.
        if set.get(MAGIC).is_some_and(|&magic| magic > 1) {
            return Err(Refused::Magic);
        }
        if size > MAX_BYTES {
            return Err(Refused::TooLarge);
        }
        let (message, rest) = set.split_at_checked(size).ok_or(Refused::Corrupt)?;
        check(message)?;
        set = rest;
    }
    Ok(())
}

/// Gives the messages of a checked set the offsets from `next` on, and returns the one behind them.
/// `each` is told every offset, and where in the set it lies. Checksums don't cover offsets.
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

/// Converts the message set that starts at `start` to magic 0, in place: its timestamps go. A cut
/// message at its end goes too, unless it is the first, by which a client learns that it asked for
/// too few bytes.
pub(super) fn down_convert(buffer: &mut Vec<u8>, start: usize) {
    let (mut from, mut to) = (start, start);
    while let Some((_, size)) = header(&buffer[from..]) {
        if size > buffer.len() - from {
            break;
        }
        let timestamp = if buffer[from + MAGIC] == 0 { 0 } else { 8 };
        if size < MIN_BYTES + timestamp {
            break;
        }
        if timestamp > 0 || to < from {
            buffer.copy_within(from..from + TIMESTAMP, to);
            buffer.copy_within(from + TIMESTAMP + timestamp..from + size, to + TIMESTAMP);
        }
        let end = to + size - timestamp;
        if timestamp > 0 {
            let message = &mut buffer[to..end];
            let message_size = (message.len() - OVERHEAD) as i32;
            message[8..OVERHEAD].copy_from_slice(&message_size.to_be_bytes());
            message[MAGIC] = 0;
            // What else the attributes say is about the timestamp.
            message[ATTRIBUTES] &= COMPRESSION;
            let sum = crc32fast::hash(&message[MAGIC..]);
            message[CRC..MAGIC].copy_from_slice(&sum.to_be_bytes());
        }
        from += size;
        to = end;
    }
    if to > start {
        buffer.truncate(to);
    }
}
