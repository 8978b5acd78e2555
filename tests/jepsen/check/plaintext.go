package check

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// Plaintext looks for words in all files below some directories: as they are, in hexadecimal and in base64. What peers
// keep on disk, and say in their logs, holds no value and no name of a secret.
func Plaintext(words []string, dirs ...string) Result {
	r := Result{Checker: "no plaintext on disk"}
	needles := map[string][][]byte{}
	for _, w := range words {
		needles[w] = forms(w)
	}
	for _, dir := range dirs {
		err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
			if err != nil || !d.Type().IsRegular() {
				return err
			}
			text, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			r.Checked++
			for word, forms := range needles {
				for _, f := range forms {
					if at := bytes.Index(text, f); at >= 0 {
						r.violate("%s has a mark of a secret (%s) at byte %d", path, word, at)
						break
					}
				}
			}
			return nil
		})
		if err != nil {
			r.Undecided = err.Error()
		}
	}
	return r
}

// forms are how a word can be written down.
func forms(word string) [][]byte {
	list := [][]byte{[]byte(word), []byte(hex.EncodeToString([]byte(word))), []byte(strings.ToUpper(hex.EncodeToString([]byte(word))))}
	for shift := range 3 { // what is before it moves it against the groups of base64; those at its edges hold something else, too
		padded := append(make([]byte, shift), word...)
		whole := padded[:len(padded)/3*3]
		for _, e := range []*base64.Encoding{base64.StdEncoding, base64.URLEncoding} {
			list = append(list, []byte(e.EncodeToString(whole))[min(shift, 1)*4:])
		}
	}
	return list
}
