//! Splits the text of a small configuration language into tokens.
//!
//! The language has names, numbers, strings in double quotes, a few signs and comments that run from
//! `#` to the end of the line. Every token knows where it came from, because an error without a line
//! number is an insult.

use std::fmt;
use std::iter::Peekable;
use std::str::CharIndices;

#[derive(Debug, Clone, PartialEq)]
pub enum Kind {
    Name(String),
    Number(f64),
    Text(String),
    Sign(char),
    End,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Token {
    pub kind: Kind,
    pub line: usize,
}

#[derive(Debug, Clone, PartialEq)]
pub enum Problem {
    UnknownSign { sign: char, line: usize },
    OpenString { line: usize },
    BadNumber { text: String, line: usize },
}

impl fmt::Display for Problem {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Problem::UnknownSign { sign, line } => write!(out, "line {line}: what is `{sign}`?"),
            Problem::OpenString { line } => write!(out, "line {line}: a string without an end"),
            Problem::BadNumber { text, line } => write!(out, "line {line}: `{text}` is no number"),
        }
    }
}

impl std::error::Error for Problem {}

pub struct Lexer<'a> {
    text: &'a str,
    chars: Peekable<CharIndices<'a>>,
    line: usize,
}

impl<'a> Lexer<'a> {
    pub fn new(text: &'a str) -> Self {
        Lexer { text, chars: text.char_indices().peekable(), line: 1 }
    }

    /// All tokens up to and including the end.
    pub fn all(mut self) -> Result<Vec<Token>, Problem> {
        let mut tokens = Vec::new();
        loop {
            let token = self.next_token()?;
            let done = token.kind == Kind::End;
            tokens.push(token);
            if done {
                return Ok(tokens);
            }
        }
    }

    fn next_token(&mut self) -> Result<Token, Problem> {
        self.skip_blank();
        let line = self.line;
        let Some(&(start, first)) = self.chars.peek() else {
            return Ok(Token { kind: Kind::End, line });
        };
        let kind = match first {
            '"' => self.string(line)?,
            c if c.is_ascii_digit() || c == '-' => self.number(start, line)?,
            c if c.is_alphabetic() || c == '_' => {
                Kind::Name(self.take_while(start, |c| c.is_alphanumeric() || c == '_').to_string())
            }
            '{' | '}' | '[' | ']' | '=' | ',' | ':' => {
                self.chars.next();
                Kind::Sign(first)
            }
            sign => return Err(Problem::UnknownSign { sign, line }),
        };
        Ok(Token { kind, line })
    }

    fn skip_blank(&mut self) {
        let mut in_comment = false;
        while let Some(&(_, c)) = self.chars.peek() {
            match c {
                '\n' => {
                    self.line += 1;
                    in_comment = false;
                }
                '#' => in_comment = true,
                c if in_comment || c.is_whitespace() => {}
                _ => return,
            }
            self.chars.next();
        }
    }

    fn take_while(&mut self, start: usize, wanted: impl Fn(char) -> bool) -> &'a str {
        let mut end = start;
        while let Some(&(at, c)) = self.chars.peek() {
            if !wanted(c) {
                break;
            }
            end = at + c.len_utf8();
            self.chars.next();
        }
        &self.text[start..end]
    }

    fn number(&mut self, start: usize, line: usize) -> Result<Kind, Problem> {
        let text = self.take_while(start, |c| c.is_ascii_digit() || matches!(c, '.' | '-' | '+' | 'e'));
        match text.parse() {
            Ok(value) => Ok(Kind::Number(value)),
            Err(_) => Err(Problem::BadNumber { text: text.to_string(), line }),
        }
    }

    fn string(&mut self, line: usize) -> Result<Kind, Problem> {
        self.chars.next();
        let mut content = String::new();
        while let Some((_, c)) = self.chars.next() {
            match c {
                '"' => return Ok(Kind::Text(content)),
                '\n' => break,
                '\\' => match self.chars.next() {
                    Some((_, 'n')) => content.push('\n'),
                    Some((_, other)) => content.push(other),
                    None => break,
                },
                other => content.push(other),
            }
        }
        Err(Problem::OpenString { line })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_and_blank_lines_are_counted_but_not_returned() {
        let tokens = Lexer::new("# first\n\nsize = 3 # three").all().unwrap();
        assert_eq!(tokens.len(), 4);
        assert_eq!(tokens[0], Token { kind: Kind::Name("size".into()), line: 3 });
        assert_eq!(tokens[2].kind, Kind::Number(3.0));
    }

    #[test]
    fn a_string_must_end_on_its_line() {
        let problem = Lexer::new("name = \"half\nof it\"").all().unwrap_err();
        assert_eq!(problem, Problem::OpenString { line: 1 });
    }
}
