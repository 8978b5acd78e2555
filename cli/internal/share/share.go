// Package share reads and writes recovery shares as SPIKE keeps them: one a
// file, in one line, "spike:NUMBER:HEX". It assumes nothing and guarantees that
// its errors repeat nothing of what it read.
package share

import (
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
)

// Share is one recovery share; its JSON form is a request to restore.
type Share struct {
	ID    int      `json:"id"` // from 1
	Shard [32]byte `json:"shard"`
}

// Export is the answer to a request for all shares, by their numbers.
type Export struct {
	Shards map[int]*[32]byte `json:"shards"`
}

var (
	form     = regexp.MustCompile(`^spike:([0-9]{1,4}):([0-9a-f]{64})$`)
	errNoOne = errors.New("this is not a recovery share: one is written spike:NUMBER:64 hexadecimal digits")
)

// Parse reads a share; white space around it does not count.
func Parse(text string) (s Share, err error) {
	parts := form.FindStringSubmatch(strings.TrimSpace(text))
	if parts == nil {
		return s, errNoOne
	}
	s.ID, _ = strconv.Atoi(parts[1])
	hex.Decode(s.Shard[:], []byte(parts[2]))
	return s, nil
}

// Write makes the file of one share in dir, mode 0600. A file that is there is
// an error, or is written anew. The share in memory is wiped.
func Write(dir string, id int, shard *[32]byte, anew bool) (name string, err error) {
	if shard == nil { // a peer said null
		return "", errNoOne
	}
	defer clear(shard[:])
	name = filepath.Join(dir, fmt.Sprintf("spike.recovery.%d.txt", id))
	flags := os.O_CREATE | os.O_WRONLY | os.O_EXCL
	if anew {
		flags = os.O_CREATE | os.O_WRONLY | os.O_TRUNC
	}
	file, err := os.OpenFile(name, flags, 0o600)
	if err != nil {
		return "", err
	}
	_, err = fmt.Fprintf(file, "spike:%d:%s", id, hex.EncodeToString(shard[:]))
	return name, errors.Join(err, file.Sync(), file.Close())
}

// Files lists the files of shares in dir; a directory that is not there has none.
func Files(dir string) ([]string, error) {
	return filepath.Glob(filepath.Join(dir, "spike.recovery.*.txt"))
}
