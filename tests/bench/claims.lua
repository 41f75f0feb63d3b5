-- For wrk: every request is one claim of 512 frames that nobody made before, the hosts take turns.
-- Arguments: a file with a line "HOST VM TOKEN EPOCH" for each host, and the number of the first claim.
-- Prints one line at the end: claims a second, p50, p99.9 and the longest wait in ms, and how many answers were not an accepted claim.
local hosts, n, threads = {}, 0, {}
wrong = 0

function setup(thread)
	table.insert(threads, thread)
end

function init(args)
	n = tonumber(args[2])
	for line in io.lines(args[1]) do
		local host, vm, token, epoch = line:match("(%S+) (%S+) (%S+) (%S+)")
		table.insert(hosts, {
			path = "/v1/hosts/" .. host .. "/transitions",
			headers = { Authorization = "Bearer " .. token, ["Content-Type"] = "application/json" },
			body = '{"boot_id":"11111111-1111-1111-1111-111111111111","epoch":' .. epoch .. ',"items":[{"vm":"' .. vm ..
				'","op":"page_in","gfn":%d,"count":512,"frame":{"pool":"local","pfn":%d}}]}'
		})
	end
end

function request()
	local h = hosts[n % #hosts + 1]
	local body = h.body:format(n * 512, (n + 1 - n % 2 * 2) * 512) -- neighbours change places: no two claims make one run
	n = n + 1
	return wrk.format("POST", h.path, h.headers, body)
end

function response(status, headers, body)
	if status ~= 200 or not body:find('"rejected":0', 1, true) then
		wrong = wrong + 1
	end
end

function done(summary, latency)
	local bad = summary.errors.connect + summary.errors.read + summary.errors.write + summary.errors.timeout
	for _, thread in ipairs(threads) do
		bad = bad + thread:get("wrong")
	end
	print(string.format("claims %.0f %.2f %.2f %.2f %d", summary.requests / summary.duration * 1e6, latency:percentile(50) / 1e3,
		latency:percentile(99.9) / 1e3, latency.max / 1e3, bad))
end
