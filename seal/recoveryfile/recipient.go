package recoveryfile

import (
	"errors"
	"fmt"
	"strings"

	"filippo.io/age"
)

// Recipient is whom a share is encrypted to.
type Recipient struct {
	recipient age.Recipient
	label     string
}

// String names the recipient, as the header of a file does.
func (r Recipient) String() string { return r.label }

// MaxRecipient is the longest recipient that is read; a hybrid one has 1,960 characters.
const MaxRecipient = 4096

// ErrRecipient: the text is no recipient of age.
var ErrRecipient = errors.New("a recipient is a public key of age: age1pq1… (with the post-quantum hybrid) or age1…")

// ParseRecipient reads a native recipient of age: X25519, or the hybrid of ML-KEM-768 and X25519.
func ParseRecipient(s string) (Recipient, error) {
	if len(s) > MaxRecipient {
		return Recipient{}, ErrRecipient
	}
	var r age.Recipient
	var err error
	if strings.HasPrefix(s, "age1pq1") {
		r, err = age.ParseHybridRecipient(s)
	} else {
		r, err = age.ParseX25519Recipient(s)
	}
	if err != nil {
		return Recipient{}, ErrRecipient
	}
	label := s
	if len(label) > 96 {
		label = s[:24] + "..." + s[len(s)-16:]
	}
	return Recipient{r, label}, nil
}

// MinPassphrase is the fewest characters of a passphrase. The files are made to be stolen: a short one is found.
const MinPassphrase = 16

// workFactor is log2 of scrypt's N: about a second and 256 MiB for each guess.
const workFactor = 18

// Passphrase is a recipient who knows a passphrase, for who has no key.
func Passphrase(passphrase string) (Recipient, error) {
	return passphraseOf(passphrase, workFactor)
}

func passphraseOf(passphrase string, work int) (Recipient, error) {
	if len(passphrase) < MinPassphrase {
		return Recipient{}, fmt.Errorf("a passphrase needs at least %d characters: several random words, say", MinPassphrase)
	}
	r, err := age.NewScryptRecipient(passphrase)
	if err != nil {
		return Recipient{}, errors.New("this is no passphrase")
	}
	r.SetWorkFactor(work)
	return Recipient{r, "who knows the passphrase"}, nil
}

// ForPassphrase says whether the file is for who knows a passphrase.
func (f *File) ForPassphrase() bool { return strings.Contains(f.For, " ") }
