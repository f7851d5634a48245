//! Memory for a request that comes in piece by piece.

use std::io;
use std::ops::{Deref, DerefMut};

use memmap2::MmapMut;

/// Larger buffers are mapped, and so go back to the system at their end. From an allocator, each thread's arena could
/// keep as much as its largest request ever had.
const LARGE: usize = 64 * 1024;

/// Bytes in memory of their own.
pub(super) enum Buffer {
    Small(Vec<u8>),
    Large(MmapMut),
}

impl Buffer {
    /// Grows to `len` bytes. Fails if there is no memory.
    pub(super) fn grow(&mut self, len: usize) -> io::Result<()> {
        match self {
            Buffer::Small(bytes) if len <= LARGE => {
                bytes.try_reserve_exact(len - bytes.len())?;
                bytes.resize(len, 0);
            }
            _ => {
                let mut larger = MmapMut::map_anon(len)?;
                larger[..self.len()].copy_from_slice(self);
                *self = Buffer::Large(larger);
            }
        }
        Ok(())
    }
}

impl Deref for Buffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Buffer::Small(bytes) => bytes,
            Buffer::Large(bytes) => bytes,
        }
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        match self {
            Buffer::Small(bytes) => bytes,
            Buffer::Large(bytes) => bytes,
        }
    }
}
