package secret

import (
	"strings"
)

// Limits of names, in bytes. They are SPIKE's own (its SDK validates the same).
const (
	MaxPathBytes = 500
	MaxNameBytes = 250
	// MaxKeys bounds the number of keys in one secret. SPIKE has no bound; ours
	// keeps one decrypt-and-encode of a secret within a known cost.
	MaxKeys = 1024
)

// ReservedPrefix is the name space that holds no secrets: policies reach
// privileges through it (see the System paths).
const ReservedPrefix = "spike/system/"

// System paths: the objects that guard operations rather than secrets.
const (
	SystemPolicies Path = "spike/system/acl"
	SystemSecrets  Path = "spike/system/secret"
	SystemCipher   Path = "spike/system/cipher/exec"
)

// Path is a canonical secret path: 1 to MaxPathBytes bytes of SPIKE's alphabet,
// in segments parted by single slashes; no segment is empty, "." or "..".
type Path string

// ParsePath checks s and returns it as a Path. It never changes a byte: what is
// not canonical is refused with CodeInvalid, because a name that two layers
// could read differently is how policies are bypassed.
func ParsePath(s string) (Path, error) {
	switch {
	case s == "":
		return "", Invalid("path", "the path is empty")
	case len(s) > MaxPathBytes:
		return "", Invalid("path", "the path is longer than 500 bytes")
	case s[0] == '/':
		return "", Invalid("path", "the path begins with a slash; write it without one")
	case s[len(s)-1] == '/':
		return "", Invalid("path", "the path ends with a slash")
	}
	for i := 0; i < len(s); i++ {
		if !pathByte(s[i]) {
			return "", Invalid("path", "the path holds a byte outside a-z A-Z 0-9 . _ - / ( ) ? + * | [ ] { } \\")
		}
	}
	for rest := s; ; {
		segment, tail, more := strings.Cut(rest, "/")
		switch segment {
		case "":
			return "", Invalid("path", "the path has an empty segment (two slashes in a row)")
		case ".", "..":
			return "", Invalid("path", "the path has a segment \".\" or \"..\"")
		}
		if !more {
			return Path(s), nil
		}
		rest = tail
	}
}

// ParsePrefix checks s as the beginning of paths: "" (all), a path, or a path
// followed by one slash.
func ParsePrefix(s string) (string, error) {
	if s == "" {
		return "", nil
	}
	if _, err := ParsePath(strings.TrimSuffix(s, "/")); err != nil {
		return "", err
	}
	return s, nil
}

// Reserved tells whether p lies in the name space that no secret may use.
func (p Path) Reserved() bool {
	return strings.HasPrefix(string(p), ReservedPrefix) || string(p) == strings.TrimSuffix(ReservedPrefix, "/")
}

func pathByte(c byte) bool {
	return alphanumeric(c) || strings.IndexByte("._-/()?+*|[]{}\\", c) >= 0
}

// ParseName checks the name of a policy or of a key within a secret: 1 to
// MaxNameBytes bytes of letters, digits, "-", "_" and space (SPIKE's rule).
func ParseName(what, s string) (string, error) {
	if s == "" || len(s) > MaxNameBytes {
		return "", Invalid(what, "a name has 1 to 250 bytes")
	}
	for i := 0; i < len(s); i++ {
		if c := s[i]; !alphanumeric(c) && c != '-' && c != '_' && c != ' ' {
			return "", Invalid(what, "a name holds only letters, digits, '-', '_' and spaces")
		}
	}
	return s, nil
}

// ParseValues checks the keys of a secret's values. The values themselves may
// be any strings; their size is limited where they are encoded.
func ParseValues(values map[string]string) error {
	if len(values) > MaxKeys {
		return Invalid("values", "a secret has more than 1024 keys")
	}
	for key := range values {
		if _, err := ParseName("key", key); err != nil {
			return err
		}
	}
	return nil
}

func alphanumeric(c byte) bool {
	return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9'
}
