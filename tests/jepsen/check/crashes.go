package check

import (
	"bufio"
	"os"
	"path/filepath"
	"regexp"
	"strings"
)

// crash is how a Go program says that it ends because of a fault of its own.
var crash = regexp.MustCompile(`^(panic: |fatal error: |unexpected fault address|SIG(SEGV|BUS|ABRT): |WARNING: DATA RACE)`)

// Crashes looks for the last words of programs with a fault of their own in what they said, in a directory of logs: what supervises a
// process starts it again, whatever it ended of.
func Crashes(dir string) Result {
	r := Result{Checker: "no crashes"}
	files, err := filepath.Glob(filepath.Join(dir, "*.log"))
	if err != nil {
		r.Undecided = err.Error()
	}
	for _, name := range files {
		file, err := os.Open(name)
		if err != nil {
			r.Undecided = err.Error()
			continue
		}
		r.Checked++
		lines := bufio.NewScanner(file)
		lines.Buffer(nil, 1<<20)
		for lines.Scan() {
			if crash.MatchString(lines.Text()) {
				r.violate("%s: %.300s", filepath.Base(name), strings.TrimSpace(lines.Text()))
			}
		}
		if err := lines.Err(); err != nil {
			r.Undecided = err.Error()
		}
		file.Close()
	}
	return r
}
