//! Plots as PNG.

use anyhow::anyhow;
use plotters::prelude::*;

use super::draw::draw;
use super::plot::Plot;
use super::svg::FILE;

/// Pixels of the picture for each one of the file, both ways: their mean is what smooth lines are made of.
const OVERSAMPLED: usize = 2;

/// A plot as a file.
///
/// # Errors
/// If it cannot be drawn or encoded.
pub(super) fn png(plot: &Plot) -> anyhow::Result<Vec<u8>> {
    let (width, height) = FILE.pixels();
    let mut pixels = vec![0; width as usize * height as usize * 3];
    let root = BitMapBackend::with_buffer(&mut pixels, (width, height)).into_drawing_area();
    draw(&root, plot, &FILE).map_err(|error| anyhow!("plot {}: {error}", plot.id))?;
    root.present().map_err(|error| anyhow!("plot {}: {error}", plot.id))?;
    drop(root);
    let small = shrink(&pixels, width as usize);
    let mut file = Vec::new();
    let (width, height) = (width / OVERSAMPLED as u32, height / OVERSAMPLED as u32);
    let mut encoder = png::Encoder::new(&mut file, width, height);
    encoder.set_color(png::ColorType::Rgb);
    encoder.set_depth(png::BitDepth::Eight);
    let mut writer = encoder.write_header()?;
    writer.write_image_data(&small)?;
    writer.finish()?;
    Ok(file)
}

/// The means of squares of [`OVERSAMPLED`] pixels.
fn shrink(pixels: &[u8], width: usize) -> Vec<u8> {
    let row = width * 3;
    let mut small = Vec::with_capacity(pixels.len() / (OVERSAMPLED * OVERSAMPLED));
    for rows in pixels.chunks_exact(row * OVERSAMPLED) {
        for x in (0..width).step_by(OVERSAMPLED) {
            for channel in 0..3 {
                let of = |dx: usize, dy: usize| u32::from(rows[dy * row + (x + dx) * 3 + channel]);
                let square = (0..OVERSAMPLED).flat_map(|dy| (0..OVERSAMPLED).map(move |dx| (dx, dy)));
                let sum: u32 = square.map(|(dx, dy)| of(dx, dy)).sum();
                small.push((sum / (OVERSAMPLED * OVERSAMPLED) as u32) as u8);
            }
        }
    }
    small
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn squares_become_their_means() {
        // Two by two pixels: red 0, 10, 20, 30; green 100 throughout; blue 0, 0, 0, 4.
        let pixels = [0, 100, 0, 10, 100, 0, 20, 100, 0, 30, 100, 4];
        assert_eq!(shrink(&pixels, 2), [15, 100, 1]);
    }
}
