//! Letters of multiple-choice answers, with or without brackets and with or without their text.

/// Letters that name a choice.
const LAST: char = 'J';

/// The letters of two answers, if one is nothing but a letter and the other names one.
#[must_use]
pub(super) fn letters(gold: &str, answer: &str) -> Option<(char, char)> {
    let both = chosen(gold).zip(chosen(answer))?;
    (only(gold).is_some() || only(answer).is_some()).then_some(both)
}

/// The letter, if a text is nothing but one: `C`, `(C)`, `\text{(C)}`.
fn only(text: &str) -> Option<char> {
    let bare = bare(text);
    let inside = bare.strip_prefix('(').and_then(|rest| rest.strip_suffix(')')).unwrap_or(&bare);
    letter_of(inside.trim_end_matches('.'))
}

/// The letter that an answer chooses: `C`, `(C)`, `C.`, `(C) 12`, `C: because`, `\textbf{(C)}\ 12`.
fn chosen(text: &str) -> Option<char> {
    if let Some(letter) = only(text) {
        return Some(letter);
    }
    let bare = bare(text);
    let (inside, bracketed) = match bare.strip_prefix('(') {
        Some(rest) => (rest, true),
        None => (bare.as_str(), false),
    };
    let mut characters = inside.chars();
    let letter = characters.next().filter(|c| ('A'..=LAST).contains(c))?;
    let rest = characters.as_str();
    let separated = if bracketed { rest.starts_with(')') } else { rest.starts_with(['.', ':', ')']) };
    separated.then_some(letter)
}

fn letter_of(text: &str) -> Option<char> {
    let mut characters = text.chars();
    let letter = characters.next().filter(|c| ('A'..=LAST).contains(c))?;
    characters.next().is_none().then_some(letter)
}

/// Without fonts, braces, dollars and spaces around.
fn bare(text: &str) -> String {
    let mut bare = text.trim().trim_matches('$').trim().to_owned();
    for font in ["\\textbf{", "\\text{", "\\mathrm{", "\\mathbf{", "\\textrm{", "\\mbox{", "\\bf ", "\\rm "] {
        if let Some(rest) = bare.strip_prefix(font) {
            let end = if font.ends_with('{') { rest.find('}') } else { None };
            bare = match end {
                Some(end) => format!("{}{}", &rest[..end], &rest[end + 1..]),
                None => rest.to_owned(),
            };
        }
    }
    bare.trim().replace("**", "")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn letters_with_and_without_their_text() {
        for text in ["C", "(C)", "\\text{(C)}", "\\text{C}", "C.", "$C$", "\\textbf{(C)}"] {
            assert_eq!((only(text), chosen(text)), (Some('C'), Some('C')), "{text}");
        }
        for text in ["(C) 12", "C. twelve", "C: twelve", "\\textbf{(C)}\\ 12", "C) twelve"] {
            assert_eq!((only(text), chosen(text)), (None, Some('C')), "{text}");
        }
        for text in ["K", "c", "CD", "C + 1", "(C, D)", "AB = 5", "", "5"] {
            assert_eq!((only(text), chosen(text)), (None, None), "{text}");
        }
    }
}
