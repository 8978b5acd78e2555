package policy

import (
	"regexp"
	"regexp/syntax"
	"strings"

	"github.com/spike-ha/spike-ha/secret"
)

// MaxPatternBytes bounds a pattern's text (SPIKE's limit for paths).
const MaxPatternBytes = 500

// ReasonUnanchored is the machine-readable reason for refusing a wire pattern
// that does not match whole names.
const ReasonUnanchored = "pattern_not_anchored"

// matcher is a compiled pattern. literal begins every name that it matches, so
// a policy set can be indexed by it.
type matcher struct {
	literal string
	match   func(string) bool
}

// compile checks p and prepares it for matching. Matching takes time linear in
// the name's length, whatever the pattern (Go's regexp guarantees that).
func compile(subject string, p secret.Pattern) (matcher, error) {
	if p.Text == "" || len(p.Text) > MaxPatternBytes {
		return matcher{}, secret.Invalid(subject, "a pattern has 1 to 500 bytes")
	}
	for i := 0; i < len(p.Text); i++ {
		if p.Text[i] < 0x20 || p.Text[i] >= 0x7f {
			return matcher{}, secret.Invalid(subject, "a pattern holds printable ASCII only")
		}
	}
	switch p.Kind {
	case secret.Exact:
		text := p.Text
		return matcher{text, func(s string) bool { return s == text }}, nil
	case secret.Prefix:
		text := strings.TrimSuffix(p.Text, "/")
		if text == "" {
			return matcher{}, secret.Invalid(subject, "a prefix of \"/\" matches nothing")
		}
		return matcher{text, func(s string) bool {
			return strings.HasPrefix(s, text) && (len(s) == len(text) || s[len(text)] == '/')
		}}, nil
	case secret.Glob:
		literal, _, _ := strings.Cut(p.Text, "*")
		return fromRegexp(subject, globExpression(p.Text), literal)
	case secret.Regexp:
		expression := p.Text
		// On its own first: "a)|(b" is none, but put between parentheses it would
		// become one, without the anchors that were meant to hold it.
		if _, err := regexp.Compile(expression); err != nil {
			return matcher{}, secret.Invalid(subject, "the pattern is not a valid regular expression")
		}
		if !anchored(expression) {
			expression = "^(" + expression + ")$"
		}
		return fromRegexp(subject, expression, literalPrefix(expression))
	}
	return matcher{}, secret.Invalid(subject, "a pattern's kind is one of exact, prefix, glob, regexp")
}

func fromRegexp(subject, expression, literal string) (matcher, error) {
	re, err := regexp.Compile(expression)
	if err != nil {
		// The parser's text would repeat the pattern, which is a name.
		return matcher{}, secret.Invalid(subject, "the pattern is not a valid regular expression")
	}
	return matcher{literal, re.MatchString}, nil
}

// globExpression writes a glob as a regular expression for whole names.
func globExpression(glob string) string {
	var b strings.Builder
	b.WriteByte('^')
	for rest := glob; rest != ""; {
		switch {
		case strings.HasPrefix(rest, "**"):
			b.WriteString(".*")
			rest = rest[2:]
		case rest[0] == '*':
			b.WriteString("[^/]*")
			rest = rest[1:]
		default:
			literal, _, _ := strings.Cut(rest, "*")
			b.WriteString(regexp.QuoteMeta(literal))
			rest = rest[len(literal):]
		}
	}
	b.WriteByte('$')
	return b.String()
}

// anchored decides on the parsed expression whether every match is a whole
// name: each alternative begins and ends with a text anchor. With the
// multi-line flag "^" and "$" parse to line anchors, which do not count.
func anchored(expression string) bool {
	parsed, err := syntax.Parse(expression, syntax.Perl)
	return err == nil && fixed(parsed, syntax.OpBeginText) && fixed(parsed, syntax.OpEndText)
}

// fixed tells whether each match of re has the anchor at its edge (the first
// element for OpBeginText, the last for OpEndText).
func fixed(re *syntax.Regexp, anchor syntax.Op) bool {
	switch re.Op {
	case anchor:
		return true
	case syntax.OpCapture:
		return fixed(re.Sub[0], anchor)
	case syntax.OpConcat:
		if len(re.Sub) == 0 {
			return false
		}
		edge := re.Sub[0]
		if anchor == syntax.OpEndText {
			edge = re.Sub[len(re.Sub)-1]
		}
		return fixed(edge, anchor)
	case syntax.OpAlternate:
		for _, sub := range re.Sub {
			if !fixed(sub, anchor) {
				return false
			}
		}
		return true
	}
	return false
}

// literalPrefix finds the text with which every match of an anchored
// expression begins; "" when there is none that is easy to see.
func literalPrefix(expression string) string {
	parsed, err := syntax.Parse(expression, syntax.Perl)
	if err != nil || parsed.Op != syntax.OpConcat || len(parsed.Sub) < 2 || parsed.Sub[0].Op != syntax.OpBeginText {
		return ""
	}
	for parsed.Sub[1].Op == syntax.OpCapture {
		parsed.Sub[1] = parsed.Sub[1].Sub[0]
	}
	first := parsed.Sub[1]
	if first.Op == syntax.OpConcat && len(first.Sub) > 0 {
		first = first.Sub[0]
	}
	if first.Op != syntax.OpLiteral || first.Flags&syntax.FoldCase != 0 {
		return ""
	}
	return string(first.Rune)
}

// wirePathPattern and wireSPIFFEPattern are the alphabets that SPIKE's own
// clients validate against; what they would refuse is refused here too.
var (
	wirePathPattern   = regexp.MustCompile(`^[a-zA-Z0-9._\-/^$()?+*|[\]{}\\]+$`)
	wireSPIFFEPattern = regexp.MustCompile(`^\^?spiffe://[\\a-zA-Z0-9.\-*()+?\[\]]+(/[\\/a-zA-Z0-9._\-*()+?\[\]]+)*\$?$`)
)

// FromWire reads a pattern of the SPIKE protocol: a regular expression that
// must be anchored on both sides. Upstream matches substrings; a pattern that
// relies on it grants more than it says, so it is refused with ReasonUnanchored
// rather than anchored in silence.
func FromWire(subject, text string, spiffe bool) (secret.Pattern, error) {
	alphabet := wirePathPattern
	if spiffe {
		alphabet = wireSPIFFEPattern
	}
	if len(text) > MaxPatternBytes || !alphabet.MatchString(text) {
		return secret.Pattern{}, secret.Invalid(subject, "the pattern is empty, too long or holds characters that SPIKE does not allow")
	}
	if _, err := regexp.Compile(text); err != nil {
		return secret.Pattern{}, secret.Invalid(subject, "the pattern is not a valid regular expression")
	}
	if !anchored(text) {
		return secret.Pattern{}, &secret.Error{Code: secret.CodeInvalid, Subject: subject,
			Message: "the pattern is not anchored: begin each alternative with ^ and end it with $", Reason: ReasonUnanchored}
	}
	return secret.Pattern{Kind: secret.Regexp, Text: text}, nil
}

// ToWire shows p as the SPIKE protocol does: an anchored regular expression.
func ToWire(p secret.Pattern) string {
	switch p.Kind {
	case secret.Exact:
		return "^" + regexp.QuoteMeta(p.Text) + "$"
	case secret.Prefix:
		return "^" + regexp.QuoteMeta(strings.TrimSuffix(p.Text, "/")) + "(/.*)?$"
	case secret.Glob:
		return globExpression(p.Text)
	}
	if anchored(p.Text) {
		return p.Text
	}
	return "^(" + p.Text + ")$"
}
