package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/spike-ha/spike-ha/api/client"
	"github.com/spike-ha/spike-ha/secret"
)

func keeperCommand() *cli.Command {
	return &cli.Command{Name: "keeper", Usage: "the Keepers, and whether they hold their shares", Subcommands: []*cli.Command{
		{Name: "list", Usage: "show the Keepers: share, health, since when they run, and who asked them lately",
			Description: "Roles superuser, admin and operator. No share is moved: unsealed peers have the Keepers prove that\nthey hold theirs, sealed ones can only repeat what they say (held).",
			Action:      with(listKeepers)},
		{Name: "verify", Usage: "have every Keeper prove its share now",
			Description: "Exit status 0: all are good. 2: some are not, and what is wrong with each stands on standard error.\nBetween two restarts of a rolling upgrade of Keepers: spikectl keeper verify --wait 60s",
			Flags:       []cli.Flag{&cli.DurationFlag{Name: "wait", Usage: "ask again until all are good, for at most this `DURATION`"}},
			Action:      over(connectForever, verifyKeepers)},
	}}
}

func listKeepers(c *cli.Context, dial dialer) error {
	if err := arguments(c, 0, 0); err != nil {
		return err
	}
	cl, ctx, err := dial()
	if err != nil {
		return err
	}
	keepers, err := cl.Keepers(ctx)
	if err != nil {
		return needsRole(err, "superuser, admin or operator")
	}
	return show(c, keepers, func(w io.Writer) { printKeepers(w, keepers) })
}

func printKeepers(w io.Writer, a client.KeepersAnswer) {
	fmt.Fprintf(w, "Share set %s: %d of %d shares open the cluster; %s\n", short(a.ShareSet), a.Threshold, a.Shares, margin(a))
	if a.PendingSet != "" {
		fmt.Fprintf(w, "Pending   %s: begun, not committed\n", short(a.PendingSet))
	}
	rows := [][]string{{"KEEPER", "SHARE", "SET", "STATE", "LAST CONTACT", "STARTED", "VERSION"}}
	for _, k := range a.Keepers {
		started := "-"
		if k.Started != nil {
			started = shortTime(*k.Started)
		}
		rows = append(rows, append(keeperRow(k.KeeperStatus), started, orDash(k.Version)))
		for _, h := range k.Holds {
			if h.Set == a.ShareSet {
				continue
			}
			state := "pending"
			if h.Current {
				state = "another set"
			}
			rows = append(rows, []string{k.Name, strconv.Itoa(h.Index), short(h.Set), state, "", "", ""})
		}
	}
	fmt.Fprintln(w)
	table(w, rows...)
	rows = [][]string{{"KEEPER", "ASKED BY", "FOR", "TIMES", "REFUSED", "LAST"}}
	for _, k := range a.Keepers {
		for _, q := range k.Askers {
			rows = append(rows, []string{k.Name, strings.TrimPrefix(q.Peer, "spiffe://"), q.Op, strconv.FormatUint(q.Count, 10), strconv.FormatUint(q.Refused, 10), shortTime(q.Last)})
		}
	}
	if len(rows) > 1 {
		fmt.Fprintln(w)
		table(w, rows...)
	}
	for _, fault := range faults(a) {
		fmt.Fprintf(w, "\n%s\n", fault)
	}
	for _, k := range a.Keepers {
		if k.Silence != "" {
			fmt.Fprintf(w, "\n%s says nothing of itself: %s\n", k.Name, k.Silence)
		}
	}
}

// verifyKeepers asks until all are good or the time given for that is over. An
// answer that cannot be had yet, as while the only unsealed peer restarts, is
// waited for like a Keeper that is not good yet.
func verifyKeepers(c *cli.Context, dial dialer) error {
	if err := arguments(c, 0, 0); err != nil {
		return err
	}
	wait := c.Duration("wait")
	if wait < 0 {
		return usage("--wait %s is not a time to wait", wait)
	}
	cl, ctx, err := dial()
	if err != nil {
		return err
	}
	answer, err := verified(ctx, cl, wait, c.Duration("timeout"))
	if err != nil {
		return needsRole(err, "superuser, admin or operator")
	}
	err = show(c, answer, func(w io.Writer) {
		if len(faults(answer)) == 0 {
			fmt.Fprintf(w, "all %d Keepers are good: %s\n", answer.Good, margin(answer))
			return
		}
		fmt.Fprintf(w, "%d of %d Keepers are good: %s\n", answer.Good, answer.Shares, margin(answer))
	})
	if err != nil {
		return err
	}
	for _, k := range answer.Keepers {
		if k.Fetched {
			fmt.Fprintf(c.App.ErrWriter, "%s is of a release without proofs: its share was sent to be checked; upgrade it\n", k.Name)
		}
	}
	if wrong := faults(answer); len(wrong) > 0 {
		for _, fault := range wrong {
			fmt.Fprintln(c.App.ErrWriter, fault)
		}
		return exitStatus(ExitRemote)
	}
	return nil
}

// verifyPause lies between two questions of --wait.
const verifyPause = time.Second

// verified asks once, or until all are good or wait is over; attempt bounds each.
func verified(ctx context.Context, cl *client.Client, wait, attempt time.Duration) (client.KeepersAnswer, error) {
	until := time.Now().Add(wait)
	for {
		bounded, cancel := context.WithTimeout(ctx, attempt)
		answer, err := cl.VerifyKeepers(bounded)
		cancel()
		if err == nil && len(faults(answer)) == 0 || err != nil && !passing(err) || time.Now().Add(verifyPause).After(until) {
			return answer, err
		}
		select {
		case <-ctx.Done():
			return answer, err
		case <-time.After(verifyPause):
		}
	}
}

// passing tells errors that may be over in a moment.
func passing(err error) bool {
	switch secret.CodeOf(err) {
	case secret.CodeSealed, secret.CodeUnavailable, secret.CodeOverloaded:
		return true
	}
	return errors.Is(err, context.DeadlineExceeded)
}

// faults says what is wrong with each Keeper that has a share and is not good.
// Peers may know others besides, of a share set of before or of one to come.
func faults(a client.KeepersAnswer) (list []string) {
	for _, k := range a.Keepers {
		if k.Index > 0 && k.Health != "good" {
			fault := k.Name + " is " + k.Health
			if k.Detail != "" {
				fault += ": " + k.Detail
			}
			list = append(list, fault)
		}
	}
	return list
}

// margin says how many Keepers can be lost.
func margin(a client.KeepersAnswer) string {
	held := 0
	for _, k := range a.Keepers {
		if k.Health == "held" {
			held++
		}
	}
	switch more := a.Good - a.Threshold; {
	case held > 0: // a sealed peer was asked, which finds none good
		return fmt.Sprintf("%d say that they hold theirs, the threshold is %d", held, a.Threshold)
	case more > 0:
		return fmt.Sprintf("%d above the threshold of %d", more, a.Threshold)
	case more == 0:
		return fmt.Sprintf("just the threshold of %d", a.Threshold)
	default:
		return fmt.Sprintf("%d below the threshold of %d", -more, a.Threshold)
	}
}

// goodOf counts Keepers in words; a sealed peer can only repeat what they say.
func goodOf(keepers []client.KeeperStatus) string {
	by := map[string]int{}
	for _, k := range keepers {
		by[k.Health]++
	}
	text := fmt.Sprintf("%d of %d good", by["good"], len(keepers))
	if by["held"] > 0 {
		text += fmt.Sprintf(", %d say that they hold their share (the asked peer is sealed)", by["held"])
	}
	return text
}

func keeperRow(k client.KeeperStatus) []string {
	share, contact := "-", "never"
	if k.Index > 0 {
		share = strconv.Itoa(k.Index)
	}
	if k.LastContact != nil {
		contact = shortTime(*k.LastContact)
	}
	return []string{k.Name, share, orDash(short(k.ShareSet)), k.Health, contact}
}

// short is enough of an id to tell it from others.
func short(id string) string { return id[:min(8, len(id))] }
