//! LZF, the compression of strings: runs of literal bytes, and copies of what came out up to 8 KiB ago.
//!
//! Decoded piece by piece into the scratch of the input, so a string takes the same memory whatever its size.

use super::{RdbError, input::Input};

/// How far back copies reach: 13 bits and one.
const WINDOW: usize = 8192;
/// The most that one operation puts out: the longest copy.
const MOST_OUT: usize = 264;
/// The most that one operation takes in: the longest run of literal bytes.
const MOST_IN: usize = 33;
/// What decoding needs: the window, and pieces that are long enough to be worth the moving of the window.
pub(super) const SCRATCH: usize = WINDOW + 3 * WINDOW;

/// A compressed string on its way.
#[derive(Default)]
pub(super) struct Lzf {
    /// Compressed bytes still to come.
    pub(super) compressed: u64,
    /// What is decoded and not taken yet: `scratch[at..end]`. Before it stands what copies may refer to.
    pub(super) at: usize,
    pub(super) end: usize,
}

/// A copy from before the start.
struct TooFarBack;

impl Lzf {
    /// Decodes the next piece of the `left` bytes that are still to be taken. What was decoded before must be taken.
    pub(super) fn refill(&mut self, input: &mut Input<'_>, left: u64) -> Result<(), RdbError> {
        let scratch = input.scratch();
        let keep = self.end.min(WINDOW);
        scratch.copy_within(self.end - keep..self.end, 0);
        (self.at, self.end) = (keep, keep);
        // One operation more still fits behind `until`.
        let room = SCRATCH - MOST_OUT;
        let until = usize::try_from(left).map_or(room, |left| room.min(self.at.saturating_add(left)));
        while self.end < until {
            self.operations(input, until)?;
        }
        let decoded = (self.end - self.at) as u64;
        if decoded > left || decoded == left && self.compressed > 0 {
            return Err(input.corrupt("a compressed string is longer than it says"));
        }
        Ok(())
    }

    /// One operation or more.
    fn operations(&mut self, input: &mut Input<'_>, until: usize) -> Result<(), RdbError> {
        // Looked at before the input is asked for more, which it may not have.
        if self.compressed == 0 {
            return Err(input.corrupt("a compressed string is shorter than it says"));
        }
        let (source, scratch) = input.ahead()?;
        let source = match usize::try_from(self.compressed) {
            Ok(most) => &source[..most.min(source.len())],
            Err(_) => source,
        };
        let mut used = 0;
        while self.end < until {
            match operation(&source[used..], scratch, &mut self.end) {
                Ok(0) => break,
                Ok(n) => used += n,
                Err(TooFarBack) => {
                    input.consume(used);
                    return Err(too_far_back(input));
                }
            }
        }
        input.consume(used);
        self.compressed -= used as u64;
        if used > 0 { Ok(()) } else { self.operation_across(input) }
    }

    /// One operation that is not in the buffer as a whole.
    fn operation_across(&mut self, input: &mut Input<'_>) -> Result<(), RdbError> {
        let mut bytes = [0; MOST_IN];
        for n in 0..MOST_IN {
            if self.compressed == 0 {
                break;
            }
            self.compressed -= 1;
            bytes[n] = input.byte()?;
            match operation(&bytes[..=n], input.scratch(), &mut self.end) {
                Ok(0) => {}
                Ok(_) => return Ok(()),
                Err(TooFarBack) => return Err(too_far_back(input)),
            }
        }
        Err(input.corrupt("a compressed string is shorter than it says"))
    }
}

fn too_far_back(input: &Input<'_>) -> RdbError {
    input.corrupt("a compressed string refers to before its start")
}

/// Decodes the operation at the start of `source` to `out[end..]`, which holds [`MOST_OUT`] bytes more. Says how many bytes it
/// took; 0 where `source` does not hold all of it.
fn operation(source: &[u8], out: &mut [u8], end: &mut usize) -> Result<usize, TooFarBack> {
    let Some((&control, rest)) = source.split_first() else { return Ok(0) };
    if control < 32 {
        let len = usize::from(control) + 1;
        let Some(literal) = rest.get(..len) else { return Ok(0) };
        out[*end..*end + len].copy_from_slice(literal);
        *end += len;
        return Ok(1 + len);
    }
    let (len, low, used) = match (control >> 5, rest) {
        (7, [more, low, ..]) => (usize::from(*more) + 9, *low, 3),
        (7, _) | (_, []) => return Ok(0),
        (short, [low, ..]) => (usize::from(short) + 2, *low, 2),
    };
    let distance = (usize::from(control & 0x1f) << 8 | usize::from(low)) + 1;
    let from = end.checked_sub(distance).ok_or(TooFarBack)?;
    // A copy may reach into itself: it then repeats what is there, which doubles with every step.
    let mut done = 0;
    while done < len {
        let n = (len - done).min(distance + done);
        out.copy_within(from..from + n, *end + done);
        done += n;
    }
    *end += len;
    Ok(used)
}
