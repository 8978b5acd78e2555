//go:build failpoints

package failpoint

import (
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
)

// Enabled says whether this build has failpoints.
const Enabled = true

// Variable is the environment variable that says where to die.
const Variable = "SPIKE_FAILPOINT"

var armed = struct {
	sync.Mutex // guards left
	left       map[Name]int
	file       string     // names where to die or freeze, from now on; "" for none
	die        func(Name) // replaced by a test of this package only, as the next one
	freeze     func(Name)
}{left: parse(os.Getenv(Variable)), file: fileOf(os.Getenv(Variable)), die: kill, freeze: stop}

// Hit kills the process when SPIKE_FAILPOINT names the step and enough hits of it went before. The file may have it
// freeze instead.
func Hit(name Name) {
	armed.Lock()
	n, ok := armed.left[name]
	if ok {
		armed.left[name] = n - 1
	}
	if armed.file != "" {
		// Removed first: who is started again goes on living.
		if text, err := os.ReadFile(armed.file); err == nil {
			step, frozen := strings.CutPrefix(strings.TrimSpace(string(text)), Freeze)
			if step == string(name) && os.Remove(armed.file) == nil {
				if frozen {
					armed.Unlock()
					armed.freeze(name)
					return
				}
				n, ok = 1, true
			}
		}
	}
	armed.Unlock()
	if ok && n == 1 {
		armed.die(name)
	}
}

// fileOf is FILE of @FILE.
func fileOf(text string) string {
	file, _ := strings.CutPrefix(text, "@")
	if file == text {
		return ""
	}
	return file
}

// kill ends the process as a crash does: by a signal that nothing can handle.
func kill(name Name) {
	fmt.Fprintf(os.Stderr, "failpoint: killed at %s\n", name)
	_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
	select {} // until the signal arrives
}

// stop stops the process as SIGSTOP from outside does. It goes on here.
func stop(name Name) {
	fmt.Fprintf(os.Stderr, "failpoint: frozen at %s\n", name)
	_ = syscall.Kill(os.Getpid(), syscall.SIGSTOP)
}

// parse reads the variable. A program that was told to die at an unknown step must not seem to survive it.
func parse(text string) map[Name]int {
	left := map[Name]int{}
	if text == "" || fileOf(text) != "" {
		return left
	}
	for word := range strings.SplitSeq(text, ",") {
		name, count, counted := strings.Cut(word, "@")
		n := 1
		if counted {
			var err error
			if n, err = strconv.Atoi(count); err != nil || n < 1 {
				panic(fmt.Sprintf("%s: %q: a count is a number from 1 on", Variable, word))
			}
		}
		if !slices.Contains(All, Name(name)) {
			panic(fmt.Sprintf("%s: there is no step %q", Variable, name))
		}
		left[Name(name)] = n
	}
	return left
}
