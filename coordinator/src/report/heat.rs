//! The cosines of a group as a square of colours.

use plotters::coord::Shift;
use plotters::prelude::*;

use super::draw::Role;

/// Cosines of a group.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Heat {
    /// Responses.
    pub(super) size: usize,
    /// Row-major `[size, size]`.
    pub(super) cosines: Vec<f32>,
}

/// Shades from -1 to 1.
const SHADES: usize = 9;

/// Side of a field, pixels.
const FIELD: i32 = 20;

/// The map's size, pixels.
pub(super) fn pixels(heat: &Heat) -> (u32, u32) {
    let side = heat.size as u32 * FIELD as u32;
    (side, side)
}

/// The shade of a cosine: the middle one is 0.
pub(super) fn shade(cosine: f32) -> usize {
    let half = (SHADES - 1) as f32 / 2.0;
    ((cosine.clamp(-1.0, 1.0) + 1.0) * half).round() as usize
}

/// Draws it: row and column i are response i, from the top left.
///
/// # Errors
/// If the backend fails.
pub(super) fn draw<DB: DrawingBackend>(
    root: &DrawingArea<DB, Shift>,
    heat: &Heat,
    paint: fn(Role) -> RGBColor,
) -> Result<(), DrawingAreaErrorKind<DB::ErrorType>> {
    for (at, cosine) in heat.cosines.iter().enumerate() {
        let corner = |n: usize| n as i32 * FIELD;
        let (x, y) = (corner(at % heat.size), corner(at / heat.size));
        let color = paint(Role::Heat(shade(*cosine)));
        // One less, so that fields are told apart.
        root.draw(&Rectangle::new([(x, y), (x + FIELD - 1, y + FIELD - 1)], color.filled()))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shades_go_from_opposite_to_identical() {
        assert_eq!([-1.0, -0.5, -0.01, 0.0, 0.13, 1.0, 1.001].map(shade), [0, 2, 4, 4, 5, 8, 8]);
    }
}
