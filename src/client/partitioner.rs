//! Kafka's own choice of a partition for a key, so that all clients agree.

use std::collections::BTreeSet;

/// The partition for a key: murmur2, as in the Java client.
pub(super) fn partition_for(key: &[u8], partitions: &BTreeSet<i32>) -> i32 {
    let n = partitions.len() as u32;
    let nth = (murmur2(key) & 0x7fff_ffff) % n.max(1);
    partitions.iter().nth(nth as usize).copied().unwrap_or(0)
}

/// MurmurHash2 with Kafka's seed (`org.apache.kafka.common.utils.Utils.murmur2`).
fn murmur2(data: &[u8]) -> u32 {
    const M: u32 = 0x5bd1_e995;
    let mut hash = 0x9747_b28c ^ data.len() as u32;
    let mut words = data.chunks_exact(4);
    for word in &mut words {
        let mut k = u32::from_le_bytes([word[0], word[1], word[2], word[3]]).wrapping_mul(M);
        k = (k ^ (k >> 24)).wrapping_mul(M);
        hash = hash.wrapping_mul(M) ^ k;
    }
    let rest = words.remainder();
    if !rest.is_empty() {
        for (n, byte) in rest.iter().enumerate() {
            hash ^= u32::from(*byte) << (8 * n);
        }
        hash = hash.wrapping_mul(M);
    }
    hash = (hash ^ (hash >> 13)).wrapping_mul(M);
    hash ^ (hash >> 15)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The values are those of `UtilsTest.testMurmur2` in Kafka's own source.
    #[test]
    fn the_hash_is_kafkas() {
        for (key, hash) in [
            ("21", -973_932_308i32),
            ("foobar", -790_332_482),
            ("a-little-bit-long-string", -985_981_536),
            ("a-little-bit-longer-string", -1_486_304_829),
            (
                "lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8",
                -58_897_971,
            ),
            ("abc", 479_470_107),
        ] {
            assert_eq!(murmur2(key.as_bytes()) as i32, hash, "{key}");
        }
    }

    #[test]
    fn the_partition_is_kafkas() {
        let partitions = BTreeSet::from([0, 1, 2, 3, 4, 5]);
        for (key, partition) in [
            ("21", 0),
            ("foobar", 0),
            ("a-little-bit-long-string", 2),
            ("a-little-bit-longer-string", 5),
            ("abc", 3),
        ] {
            assert_eq!(
                partition_for(key.as_bytes(), &partitions),
                partition,
                "{key}"
            );
        }
    }
}
